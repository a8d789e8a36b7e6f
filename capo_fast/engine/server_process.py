"""The processes of vLLM's OpenAI server on this machine: started, waited for, called, watched and ended."""

from __future__ import annotations

import http.client
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from capo_fast.config.critic import ServerConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.masking import without_key
from capo_fast.engine.server_key import KeyOfEveryRoute
from capo_fast.engine.supervise import ENDED, GROUP
from capo_fast.engine.vllm_start import cpu_prefill
from capo_fast.runtime.files import is_locked, naming

NAME = "critic"
"""The server's name of the model."""
PYTHON = (sys.executable, "-P", "-m")
"""With the import path that the environment gives, which is this process's, and no other."""
POLL_S, TRY_S, END_S = 0.1, 5.0, 30.0


@dataclass(frozen=True)
class Place:
    """A server, for all ranks of its node."""

    model: str
    """Folder or hub id."""
    port: int
    key: str
    folder: Path
    """Its temporary files; the exit status once it has ended."""
    log: Path
    """Its output."""
    rank: int
    """The rank that has started it."""


Command = Callable[[str, ServerConfig, int, int], list[str]]
"""Of model, settings, GPUs and port, the words that start a server."""


def server_command(model: str, config: ServerConfig, gpus: int, port: int) -> list[str]:
    """vLLM's. Not `vllm serve`: that looks for a package of the name vllm, which its build for CPUs has not."""
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


OF_A_RANK = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|VLLM_ENABLE_V1_MULTIPROCESSING"
)
"""Environment variables that say what this process is: the server is none of its ranks."""


def _environment(key: str, folder: Path, eager: bool) -> dict[str, str]:
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    mine = {name: value for name, value in os.environ.items() if not OF_A_RANK.fullmatch(name)}
    if "TORCHINDUCTOR_CACHE_DIR" not in mine:
        mine["TORCHINDUCTOR_CACHE_DIR"] = default_cache_dir()  # not in the folder that goes
    mine.setdefault("VLLM_NO_USAGE_STATS", "1")
    if eager and not torch.cuda.is_available():
        mine["TORCHDYNAMO_DISABLE"] = "1"  # as for the policy's engine (vllm_start.py)
    own = {"VLLM_API_KEY": key, "VLLM_SERVER_DEV_MODE": "1", "TMPDIR": str(folder), "PYTHONPATH": path}
    return mine | own


@contextmanager
def running_server(
    model: str, config: ServerConfig, gpus: int, log: Path, rank: int, command: Command = server_command
) -> Iterator[Place]:
    """A server that answers. At the end its processes are gone, and so are their files but for the log.

    Raises EngineError where it ends or does not answer in time.
    """
    with naming(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb")
    folder = Path(tempfile.mkdtemp(prefix="capo_fast-"))
    place = Place(model, _free_port(), secrets.token_urlsafe(32), folder, log, rank)
    words = [*PYTHON, "capo_fast.engine.supervise", str(os.getpid()), str(folder)]
    with output:
        supervisor = subprocess.Popen(
            [*words, *command(model, config, gpus, place.port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(place.key, folder, config.enforce_eager),
            start_new_session=True,  # Ctrl-C is for this process, which saves its step first
        )
    try:
        _wait_for(place, supervisor, config.start_timeout_s)
        yield place
    finally:
        _end(supervisor)
        _end_what_is_left(folder)


def _wait_for(place: Place, supervisor: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _answers(place, min(TRY_S, timeout_s)):
        _check_status(place)
        if supervisor.poll() is not None:
            raise EngineError(f"critic.path: the server of {place.model} could not be started; {_said(place)}")
        if time.monotonic() > deadline:
            raise EngineError(
                f"critic.path: the server of {place.model} has not answered within {timeout_s:g} s "
                f"(critic.server.start_timeout_s); {_said(place)}"
            )
        time.sleep(POLL_S)


def _answers(place: Place, timeout_s: float) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return _status(place, "GET", "/v1/models", timeout_s) == 200
    return False


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.send_signal(signal.SIGTERM)
    try:
        supervisor.wait(END_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def _end_what_is_left(folder: Path) -> None:
    """Where the supervisor was killed, or ended as it started, it has not done so."""
    if folder.exists():
        with suppress(FileNotFoundError, ProcessLookupError):
            os.killpg(int((folder / GROUP).read_text()), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


# ---- what any rank of the node does ----


def check_runs(place: Place) -> None:
    """Raises EngineError where the server has ended, with its exit status and what it has last said."""
    _check_status(place)
    if not is_locked(place.folder):
        raise EngineError(
            f"critic.path: the server of {place.model} was killed, or has ended with rank {place.rank}, which started "
            f"it; {_said(place)}"
        )


def _check_status(place: Place) -> None:
    with suppress(FileNotFoundError):
        status = int((place.folder / ENDED).read_text())
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        raise EngineError(f"critic.path: the server of {place.model} {how}; {_said(place)}")


def call(place: Place, route: str, timeout_s: float) -> None:
    """POST. Raises EngineError where the server does not do it in time."""
    try:
        status = _status(place, "POST", route, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        check_runs(place)
        raise EngineError(
            f"critic.path: the server of {place.model} has not done {route} within {timeout_s:g} s "
            f"(endpoint.timeout_s): {error or type(error).__name__}"
        ) from error
    if status != 200:
        raise EngineError(f"critic.path: the server of {place.model} answers {route} with {status}; {_said(place)}")


def _status(place: Place, method: str, route: str, timeout_s: float) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=timeout_s)
    try:
        connection.request(method, route, headers={"Authorization": f"Bearer {place.key}"})
        return connection.getresponse().status
    finally:
        connection.close()


def _said(place: Place) -> str:
    line = without_key(last_error(place.log), place.key)[:300]
    return f"the end of its log {place.log}: {line}" if line else f"its log {place.log} is empty"


PREFIX = re.compile(r"(\(\w+ pid=\d+\) )?((ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
"""Of vLLM's lines."""
ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b(?!.*See root cause above)")
TAIL_BYTES = 2**16


def last_error(log: Path) -> str:
    """The last line of a log that has an error's name and says something; without one, the last line.

    vLLM's very last one is often about another process of its own whose error is further up.
    """
    with suppress(OSError):
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        lines = [line for each in text.splitlines() if (line := PREFIX.sub("", each, count=1).strip())]
        errors = [line for line in lines if ERROR.match(line)]
        return (errors or lines or [""])[-1]
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
