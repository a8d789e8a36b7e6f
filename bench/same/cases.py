"""The runs by which two commits are compared."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TIMED = ("time/*", "cpu/*", "speed/*", "memory*", "tokens_per_s", "engine/*_s")
"""Metrics that differ between any two runs: times, rates and memory."""
SMALL = (
    "--train.steps=3",
    "--rollout.prompts=4",
    "--rollout.n=4",
    "--eval.limit=16",
    "--checkpoint.every=1",
    "--reward.timeout_s=60",
)
"""Settings of every case that override the default configuration."""

# ---- fixtures of a run ----


def canned_critique(body: Mapping[str, Any]) -> str:
    """A critique that changes with any change of the request's message or sampling."""
    request = json.dumps([body[key] for key in ("messages", "temperature", "top_p", "max_tokens", "seed")])
    digits = blake2b(request.encode()).digest()
    steps = body["messages"][-1]["content"].count("</step_")
    wrong = [str(k) for k in range(steps) if digits[k % len(digits)] < 64]
    return f"Judgment: No\n<incorrect_steps>{', '.join(wrong)}</incorrect_steps>" if wrong else "Judgment: Yes"


class CannedCritic(BaseHTTPRequestHandler):
    """The two routes of an OpenAI-compatible server that an endpoint critic uses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(
            {"object": "list", "data": [{"id": "canned", "object": "model", "created": 0, "owned_by": "bench"}]}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = canned_critique(body)
        used = {"prompt_tokens": len(body["messages"][-1]["content"]), "completion_tokens": len(text)}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = used | {"total_tokens": sum(used.values())}
        kind = {"id": "canned", "object": "chat.completion", "created": 0, "model": "canned"}
        self._reply(kind | {"choices": [choice], "usage": usage})

    def _reply(self, payload: Any) -> None:
        data = json.dumps(payload).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """No line per request."""


@contextmanager
def served_critic(tree: Path, folder: Path) -> Iterator[list[str]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), CannedCritic) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield [f"--endpoint.url=http://127.0.0.1:{server.server_port}/v1"]
        finally:
            server.shutdown()


@contextmanager
def other_critic(tree: Path, folder: Path) -> Iterator[list[str]]:
    """The embedded model with noise in its weights: a critic that differs from the initial policy."""
    path = folder / "critic"
    shutil.copytree(tree / "capo_fast/tiny/model", path)
    weights, noise = load_file(path / "model.safetensors"), torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        weights[name] = weight * (1 + 0.1 * torch.randn(weight.shape, generator=noise))
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    yield [f"--critic.path={path}"]


@dataclass(frozen=True)
class Case:
    """A run of the default configuration at a small size, with further `arguments`."""

    arguments: tuple[str, ...] = ()
    ranks: int = 1
    killed: bool = False
    """The process is killed at its first checkpoint after a step, and the same command resumes."""
    around: Callable[[Path, Path], AbstractContextManager[Sequence[str]]] = lambda tree, folder: nullcontext(())
    """Fixture of the run, made from the tree and the run's folder; returns further arguments."""
    timed: tuple[str, ...] = TIMED


CASES = {
    "capo": Case(),
    "grpo": Case(("--algorithm=grpo",)),
    "dapo": Case(("--algorithm=dapo",)),
    "lora": Case(("--lora.rank=4", "--loss.kl_coef=0.01")),
    "critic": Case(("--critic.votes=2", "--loss.kl_coef=0.01"), around=other_critic),
    # Which critiques finish during rollouts is a race between the engine and the server.
    "endpoint": Case(
        ("--critic.mode=endpoint", "--critic.votes=2"), around=served_critic, timed=(*TIMED, "critic/overlap")
    ),
    "gated": Case(("--algorithm=capo-gated", "--critic.gate.trust_right=true")),
    "ranks": Case(ranks=2),
    "killed": Case(killed=True),
}
