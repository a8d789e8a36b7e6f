"""A critic of any size on the policy's devices: one vLLM server per node (`critic.mode: server`).

Two engines can't sleep in one process, so the critic runs in processes of its own. The first rank of a node starts and
ends the server, and all ranks of the node send it requests on its loopback address. Critiques and the key stay on the
node, and a node's host memory has the sleeping weights once.

    start -> sleep -> (wake up -> critiques -> sleep) per step -> end

A server is started once: if it exits, the run fails.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from capo_fast.config.critic import EndpointConfig, ServerConfig
from capo_fast.engine.base import Completer, EngineError
from capo_fast.engine.server_process import (
    NAME,
    POLL_S,
    Command,
    RunningServer,
    call,
    check_runs,
    running_server,
    server_command,
)
from capo_fast.engine.tensor_parallel import Sizes, check_divides, most_slices
from capo_fast.engine.vllm_start import without_brackets
from capo_fast.errors import ConfigError
from capo_fast.records import Completion, Request
from capo_fast.runtime.ranks import once_a_node

END_KNOWN_S = 6.0
"""Seconds that a failed request waits for the server to exit: vLLM's server checks its engine every 5 s."""
END_SEEN_S = 1.0
"""The same if a request was given up and the run would continue."""


class CriticServer:
    """One rank's handle of its node's server."""

    def __init__(self, process: RunningServer, timeout_s: float, sleeps: bool, undo: ExitStack) -> None:
        """timeout_s: limit of a sleep or wake-up call. sleeps: whether the server sleeps between critiques; it then
        sleeps already. undo: ends what this rank has started."""
        self.process = process
        self._timeout_s, self._sleeps, self._undo = timeout_s, sleeps, undo
        self._asleep = sleeps

    @property
    def key(self) -> str:
        """Key of every route."""
        return self.process.key

    def endpoint(self, config: EndpointConfig) -> EndpointConfig:
        """Settings of the client: these, with the server's address and model name."""
        return replace(config, url=f"http://127.0.0.1:{self.process.port}/v1", model=NAME)

    def sleep(self) -> None:
        """Move the weights to the host and drop cached prefixes. A collective."""
        self._turn(SLEEP, asleep=True)

    def wake_up(self) -> None:
        """A collective. The policy's engine must sleep on each rank before."""
        self._turn("/wake_up", asleep=False)

    def check(self, wait_s: float = 0.0) -> None:
        """Raises EngineError if the server has exited, or exits within `wait_s`."""
        deadline = time.monotonic() + wait_s
        check_runs(self.process)
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            check_runs(self.process)

    def close(self) -> None:
        self._undo.close()

    def _turn(self, route: str, asleep: bool) -> None:
        if not self._sleeps or self._asleep == asleep:
            return
        torch.cuda.empty_cache()  # the server can't use memory that this process's allocator caches
        # While the server frees memory, vLLM requires that no other process allocates any.
        dist.barrier()
        if dist.get_rank() == self.process.rank:
            call(self.process, route, self._timeout_s)
        dist.barrier()
        self._asleep = asleep


SLEEP = "/sleep?level=1"
"""Level 1 keeps the weights on the host: no other copy exists."""


def start_critic_server(
    model: str,
    config: ServerConfig,
    gpus: int,
    logs: Path,
    timeout_s: float,
    sleeps: bool,
    command: Command = server_command,
) -> CriticServer:
    """A server of this model, a folder or hub id, on each node, which answers or sleeps. A collective.

    gpus: GPUs per server. logs: folder of its output. timeout_s: limit of each sleep or wake-up call. sleeps: whether
    its GPUs are used by others between critiques. command: its command line. Raises EngineError if one exits or does
    not answer in time.
    """
    log = logs / f"critic-server-{dist.get_rank()}.log"

    def start() -> RunningServer:
        path = undo.enter_context(without_brackets(model))
        server = undo.enter_context(running_server(path, config, gpus, log, dist.get_rank(), command))
        if sleeps:
            call(server, SLEEP, timeout_s)
        return server.without_key()  # the result is sent to all nodes

    with ExitStack() as undo:
        server = once_a_node(start).with_key()
        return CriticServer(server, timeout_s, sleeps, undo.pop_all())


def gpus_of(config: ServerConfig, model: Sizes, ranks: int) -> int:
    """GPUs per server: the largest number, at most the node's `ranks`, that divides the model, or the setting. A CPU
    counts as one. Raises ConfigError if the setting does not divide the model, or exceeds the node's GPUs."""
    there = max(1, torch.cuda.device_count())
    if (wanted := config.tensor_parallel) is None:
        return most_slices(model, min(ranks, there))
    key = "critic.server.tensor_parallel"
    if wanted > there:
        raise ConfigError(f"{key}: found {wanted}, wanted at most {there}, the GPUs visible to a rank of this node")
    check_divides(model, wanted, key)
    return wanted


class ServedCritic:
    """A `Completer` for the critic at the run's own server."""

    def __init__(self, server: CriticServer, client: Completer | None) -> None:
        """client: the server's client; None on a rank whose engine's first rank sends the requests."""
        self._server, self._client = server, client
        self.pause_s = client.pause_s if client else 0.0

    def add(self, request: Request) -> None:
        assert self._client is not None
        self._client.add(request)

    def step(self) -> list[Completion]:
        """Raises the client's EngineError, and one if the server has exited, whatever `endpoint.on_failure` is."""
        self._server.check()
        try:
            ended = self._client.step() if self._client else []
        except EngineError:
            self._server.check(END_KNOWN_S)
            raise
        if any(completion.error for completion in ended):
            self._server.check(END_SEEN_S)
        return ended

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._server.close()
