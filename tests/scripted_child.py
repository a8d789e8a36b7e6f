"""A stub of vLLM's server as a process of its own: `python scripted_child.py PORT MODE FOLDER`.

It has a worker in its own session, shared memory and a semaphore, and writes its requests into FOLDER. MODE is `serve`;
`mute` never answers; `fail` exits with vLLM's error lines; `kill:N` and `exit:N` end it at the N-th critique.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

FAILURE = """\
(EngineCore pid=7) ERROR 11-29 15:00:01 [core.py:99] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-29 15:00:01 [core.py:99] ValueError: not enough memory for 1 sequence
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def scripted(mode: str, folder: Path, model: str, config: object, gpus: int, port: int) -> list[str]:
    return [sys.executable, __file__, str(port), mode, str(folder)]


def command(mode: str, folder: Path):
    """The server's `Command`."""
    folder.mkdir(parents=True, exist_ok=True)
    return partial(scripted, mode, folder)


def serve_until_killed(mode: str, folder: Path) -> None:
    """A trainer that starts a server and waits to be killed."""
    from capo_fast.config.critic import ServerConfig
    from capo_fast.engine.server_process import running_server

    with running_server("judge", ServerConfig(), 1, folder / "log", 0, command(mode, folder)):
        (folder / "ready").touch()
        time.sleep(60)


def query_on_a_rank(folder: Path) -> None:
    """One rank of a job whose ranks share a node: each wakes the server and gets an answer."""
    import torch.distributed as dist

    from capo_fast.config.critic import EndpointConfig, ServerConfig
    from capo_fast.engine.base import run_requests
    from capo_fast.engine.critic_server import ServedCritic, start_critic_server
    from capo_fast.engine.endpoint import EndpointCritic
    from capo_fast.records import Request
    from capo_fast.runtime.ranks import ranks

    with ranks():
        name = f"rank-{dist.get_rank()}"
        server = start_critic_server("judge", ServerConfig(), 1, folder, 20.0, True, command("serve", folder / name))
        critic = ServedCritic(server, EndpointCritic(server.endpoint(EndpointConfig()), key=server.key))
        server.wake_up()
        [answer] = run_requests(critic, [Request(name, (), 0, 1.0, 1.0, -1, 8, message="1+1")]).values()
        print(f"{name}: {answer.text}", flush=True)
        server.sleep()
        critic.close()


def processes(folder: Path) -> list[int]:
    """Process ids of a running server and its worker."""
    return [int(line) for line in (folder / "pids").read_text().split()]


def is_running(pid: int) -> bool:
    """True if the process is running. A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def all_end(pids: list[int], files: Sequence[Path] = (), seconds: float = 15.0) -> bool:
    """True if the processes exit and the files are deleted within `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := any(map(is_running, pids)) or any(map(Path.exists, files))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not left


def has_ended(child: Path) -> bool:
    """True if all processes exit and their shared memory is deleted."""
    return all_end(processes(child), shared_by(child))


def shared_by(child: Path) -> list[Path]:
    found = [Path(name) for name in (child / "shared").read_text().split()]
    assert len(found) == 3
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "critic"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        with (self.server.folder / "requests").open("a") as file:
            print(self.path, file=file)
        if self.path == "/v1/chat/completions":
            self.server.answer()
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "Judgment: Yes"}}
        self.reply({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})

    def reply(self, payload: object) -> None:
        known = self.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"
        data = json.dumps(payload if known else {"error": {"message": "no key"}}).encode()
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # at the default of 5 the system resets further connections

    def __init__(self, port: int, mode: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        self.end, _, number = mode.partition(":")
        self.left = int(number or 0)

    def answer(self) -> None:
        self.left -= 1
        if self.left == 0:
            print("RuntimeError: the last of its lines", flush=True)
            if self.end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(9)


WORKER = """\
import mmap, multiprocessing, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
memory = mmap.mmap(file, 4096)
lock = multiprocessing.get_context("spawn").Lock()
print(sys.argv[1], f"/dev/shm/sem.{lock._semlock.name[1:]}", flush=True)
time.sleep(600)
"""


def main(port: int, mode: str, folder: Path) -> None:
    print("INFO 11-29 15:00:00 [api_server.py:1] starting")
    (folder / "environment").write_text(json.dumps(dict(os.environ)))
    if mode == "fail":
        sys.exit(FAILURE)
    server = Server(port, mode, folder)
    shared = f"/dev/shm/capo_fast-test-{os.getpid()}"
    worker = subprocess.Popen([sys.executable, "-c", WORKER, shared], stdout=subprocess.PIPE, start_new_session=True)
    memory = SharedMemory(create=True, size=4096)
    memory.close()  # only Python's resource tracker can delete it now
    (folder / "shared").write_text(f"{worker.stdout.readline().decode()} /dev/shm/{memory.name}")
    (folder / "pids").write_text(f"{os.getpid()} {worker.pid}")
    if mode == "mute":
        time.sleep(600)
    server.serve_forever(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
