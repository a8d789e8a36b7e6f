"""Starts, calls, checks and ends the processes of vLLM's OpenAI server on this machine."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from capo_fast.config.critic import ServerConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.listener import is_mine
from capo_fast.engine.masking import without_key
from capo_fast.engine.server_key import KeyOfEveryRoute
from capo_fast.engine.supervise import ENDED, GROUP
from capo_fast.engine.vllm_start import cpu_prefill
from capo_fast.runtime.files import is_locked, naming
from capo_fast.runtime.ranks import free_port

NAME = "critic"
"""The model's name at the server."""
PYTHON = (sys.executable, "-P", "-m")
"""Uses only the import path in the environment, which is this process's."""
POLL_S = 0.1
"""Seconds between checks of a starting server."""
TRY_S = 5.0
"""Seconds for one answer of a starting server."""
END_S = 30.0
"""Seconds for the supervisor to end all processes."""


@dataclass(frozen=True)
class RunningServer:
    """A server's record on every rank of its node."""

    model: str
    """Folder or hub id."""
    port: int
    folder: Path
    """Its temporary files, its key, and its exit status once it has exited."""
    log: Path
    """File of its output."""
    log_begin: int
    """Bytes of the log that earlier servers wrote."""
    rank: int
    """The rank that started it."""
    key: str = field(default="", repr=False)
    """Key of every route. It never leaves the node: a rank gets the record without it, and calls `with_key`."""

    def without_key(self) -> RunningServer:
        return replace(self, key="")

    def with_key(self) -> RunningServer:
        """Raises EngineError if this rank can't read the key."""
        try:
            return replace(self, key=(self.folder / KEY).read_text())
        except OSError as error:
            raise EngineError(f"critic.path: the key of the server of {self.model} can't be read: {error}") from error


KEY = "key"


Command = Callable[[str, ServerConfig, int, int], list[str]]
"""The command line of a server, from model, settings, number of GPUs and port."""


def server_command(model: str, config: ServerConfig, gpus: int, port: int) -> list[str]:
    """vLLM's command line. Not `vllm serve`, which needs a package named vllm: the CPU build has another name."""
    on_cpu = not torch.cuda.is_available()
    options: dict[str, Any] = {
        "model": model,
        "served_model_name": NAME,
        "host": "127.0.0.1",
        "port": port,
        "config_format": "hf",
        "load_format": "safetensors",
        "tensor_parallel_size": gpus,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30),
        "gpu_memory_utilization": 0.05,  # as for the policy's engine (vllm_start.py)
        "enforce_eager": config.enforce_eager,
        "enable_sleep_mode": not on_cpu,
        "generation_config": "vllm",
        "middleware": f"{KeyOfEveryRoute.__module__}.{KeyOfEveryRoute.__qualname__}",
        "disable_uvicorn_access_log": True,
        **(cpu_prefill(config.max_model_len) if on_cpu else {}),
    }
    return [*PYTHON, "vllm.entrypoints.openai.api_server", *_flags(options)]


def _flags(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", str(value))


RANK_ENVIRONMENT = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|VLLM_ENABLE_V1_MULTIPROCESSING"
)
"""Environment variables of a rank; the server must not inherit them."""


def _environment(key: str, folder: Path, eager: bool) -> dict[str, str]:
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    mine = {name: value for name, value in os.environ.items() if not RANK_ENVIRONMENT.fullmatch(name)}
    if "TORCHINDUCTOR_CACHE_DIR" not in mine:
        mine["TORCHINDUCTOR_CACHE_DIR"] = default_cache_dir()  # not in the temporary folder
    mine.setdefault("VLLM_NO_USAGE_STATS", "1")
    if eager and not torch.cuda.is_available():
        mine["TORCHDYNAMO_DISABLE"] = "1"  # as for the policy's engine (vllm_start.py)
    own = {"VLLM_API_KEY": key, "VLLM_SERVER_DEV_MODE": "1", "TMPDIR": str(folder), "PYTHONPATH": path}
    return mine | own


@contextmanager
def running_server(
    model: str, config: ServerConfig, gpus: int, log: Path, rank: int, command: Command = server_command
) -> Iterator[RunningServer]:
    """A server that answers. At the end its processes are ended and their files deleted, except the log, to which
    earlier servers have written as well.

    Raises EngineError if it can't be started, exits or does not answer in time, RecordError for files that can't be
    written.
    """
    with ExitStack() as stack:
        with naming(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(log.open("ab"))
        with naming(Path(tempfile.gettempdir())):
            temporary = tempfile.TemporaryDirectory(prefix="capo_fast-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary))
            key = _write_key(folder)
        server = RunningServer(model, free_port(), folder, log, output.tell(), rank, key)
        supervisor = _start(server, command(model, config, gpus, server.port), output, config.enforce_eager)
        stack.callback(_kill_remaining, folder)
        stack.callback(_end, supervisor)
        _wait_for(server, supervisor, config.start_timeout_s)
        yield server


def _write_key(folder: Path) -> str:
    """Write a new key. Only this user can read the folder."""
    key = secrets.token_urlsafe(32)
    (folder / KEY).write_text(key)
    return key


def _start(server: RunningServer, command: Sequence[str], output: BinaryIO, eager: bool) -> subprocess.Popen[bytes]:
    """Start the supervisor, which starts and ends the server. Raises EngineError."""
    words = [*PYTHON, "capo_fast.engine.supervise", str(os.getpid()), str(server.folder)]
    try:
        return subprocess.Popen(
            [*words, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(server.key, server.folder, eager),
            start_new_session=True,  # Ctrl-C must reach only this process, which saves its step first
        )
    except OSError as error:
        raise EngineError(f"critic.path: the server of {server.model} could not be started: {error}") from error


def _wait_for(server: RunningServer, supervisor: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _answers(server, min(TRY_S, timeout_s)):
        _check_status(server)
        if supervisor.poll() is not None:
            raise EngineError(f"critic.path: the server of {server.model} could not be started; {_end_of_log(server)}")
        if time.monotonic() > deadline:
            raise EngineError(
                f"critic.path: the server of {server.model} has not answered within {timeout_s:g} s "
                f"(critic.server.start_timeout_s); {_end_of_log(server)}"
            )
        time.sleep(POLL_S)


def _answers(server: RunningServer, timeout_s: float) -> bool:
    """Whether the server answers. The key is not sent if a process of another user has taken the port meanwhile."""
    if not is_mine(server.port):
        return False
    with suppress(OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        status, body = _request(server, "GET", "/v1/models", timeout_s)
        return status == 200 and [model["id"] for model in json.loads(body)["data"]] == [NAME]
    return False


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.send_signal(signal.SIGTERM)
    try:
        supervisor.wait(END_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def _kill_remaining(folder: Path) -> None:
    """Kill the server's process group, in case the supervisor was killed or failed at its start."""
    with suppress(FileNotFoundError, ProcessLookupError):
        os.killpg(int((folder / GROUP).read_text()), signal.SIGKILL)


# ---- on any rank of the node ----


def check_runs(server: RunningServer) -> None:
    """Raises EngineError if the server has exited, with its exit status and the last error of its log."""
    _check_status(server)
    if not is_locked(server.folder):
        raise EngineError(
            f"critic.path: the server of {server.model} was killed, or exited with rank {server.rank}, which "
            f"started it; {_end_of_log(server)}"
        )


def _check_status(server: RunningServer) -> None:
    with suppress(FileNotFoundError):
        status = int((server.folder / ENDED).read_text())
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        raise EngineError(f"critic.path: the server of {server.model} {how}; {_end_of_log(server)}")


def call(server: RunningServer, route: str, timeout_s: float) -> None:
    """POST to a route. Raises EngineError if the server does not answer in time, or answers with another status."""
    try:
        status, _ = _request(server, "POST", route, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        check_runs(server)
        raise EngineError(
            f"critic.path: the server of {server.model} has not answered {route} within {timeout_s:g} s "
            f"(endpoint.timeout_s): {error or type(error).__name__}"
        ) from error
    if status != 200:
        raise EngineError(
            f"critic.path: the server of {server.model} answers {route} with {status}; {_end_of_log(server)}"
        )


def _request(server: RunningServer, method: str, route: str, timeout_s: float) -> tuple[int, bytes]:
    """Status and body of the server's answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)) as connection:
        connection.request(method, route, headers={"Authorization": f"Bearer {server.key}"})
        response = connection.getresponse()
        return response.status, response.read(MOST_BYTES)


def _end_of_log(server: RunningServer) -> str:
    line = without_key(last_error(server.log, server.log_begin), server.key)[:300]
    return f"the end of its log {server.log}: {line}" if line else f"its log {server.log} is empty"


PREFIX = re.compile(r"(\(\w+ pid=\d+\) )?((ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
"""Prefix of vLLM's log lines."""
ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b(?!.*See root cause above)")
MOST_BYTES = 2**16
"""Bytes that are read of a log's end, and of an answer."""


def last_error(log: Path, begin: int = 0) -> str:
    """The last line of a log, from byte `begin` on, that starts with an error's name; if there is none, the last line.

    vLLM's very last line is often about another process, whose error is further up.
    """
    with suppress(OSError), log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - MOST_BYTES))
        text = file.read().decode(errors="replace")
        lines = [line for each in text.splitlines() if (line := PREFIX.sub("", each, count=1).strip())]
        errors = [line for line in lines if ERROR.match(line)]
        return (errors or lines or [""])[-1]
    return ""
