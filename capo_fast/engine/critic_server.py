"""A critic of any size on the devices of the policy: a server of vLLM's on each node (`critic.mode: server`).

Two engines can't sleep in one process, so the critic's has processes of its own. The first rank of a node starts the
server and ends it, and all ranks of the node ask it on its loopback address: critiques and its key stay on the node,
more nodes have more servers, and a node's host memory holds the sleeping weights once.

    start -> sleep -> (wake up -> critiques -> sleep) per step -> end

It is started once: where one ends, so does the run.
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
"""How long an error waits for the server's end to be known: vLLM's looks after its engine every 5 s."""
END_SEEN_S = 1.0
"""The same where a request was given up and the run would go on."""


class CriticServer:
    """A node's server, as one rank of the node has it."""

    def __init__(self, process: RunningServer, timeout_s: float, sleeps: bool, undo: ExitStack) -> None:
        """timeout_s: of a call that changes who has the GPUs. sleeps: whether any does; it sleeps already then. undo:
        ends what this rank has started."""
        self.process = process
        self._timeout_s, self._sleeps, self._undo = timeout_s, sleeps, undo
        self._asleep = sleeps

    @property
    def key(self) -> str:
        """What its every route wants."""
        return self.process.key

    def endpoint(self, config: EndpointConfig) -> EndpointConfig:
        """Where it is asked, with the patience and the budget of the settings."""
        return replace(config, url=f"http://127.0.0.1:{self.process.port}/v1", model=NAME)

    def sleep(self) -> None:
        """Weights go to the host, cached prefixes are dropped. A collective."""
        self._turn(SLEEP, asleep=True)

    def wake_up(self) -> None:
        """A collective, before which the policy's engine has gone to sleep on each rank."""
        self._turn("/wake_up", asleep=False)

    def check(self, wait_s: float = 0.0) -> None:
        """Raises EngineError where it has ended, or ends within these seconds."""
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
        torch.cuda.empty_cache()  # what this process's allocator keeps, the server's can't have
        # While the server gives memory back, vLLM wants to see no other process take any.
        dist.barrier()
        if dist.get_rank() == self.process.rank:
            call(self.process, route, self._timeout_s)
        dist.barrier()
        self._asleep = asleep


SLEEP = "/sleep?level=1"
"""1 keeps the weights on the host: nothing else has them."""


def start_critic_server(
    model: str,
    config: ServerConfig,
    gpus: int,
    logs: Path,
    timeout_s: float,
    sleeps: bool,
    command: Command = server_command,
) -> CriticServer:
    """A server of this model, a folder or hub id, on each node. It answers, or sleeps. A collective.

    gpus: how many hold it. logs: folder of its output. timeout_s: of each call that puts it to sleep or wakes it up.
    sleeps: whether others want its GPUs between critiques. command: how it is started. Raises EngineError where one
    ends or doesn't answer in time.
    """
    log = logs / f"critic-server-{dist.get_rank()}.log"

    def start() -> RunningServer:
        path = undo.enter_context(without_brackets(model))
        server = undo.enter_context(running_server(path, config, gpus, log, dist.get_rank(), command))
        if sleeps:
            call(server, SLEEP, timeout_s)
        return server.without_key()  # all nodes get what is returned

    with ExitStack() as undo:
        server = once_a_node(start).with_key()
        return CriticServer(server, timeout_s, sleeps, undo.pop_all())


def gpus_of(config: ServerConfig, model: Sizes, ranks: int) -> int:
    """How many hold a server's model: as many as the node has `ranks`, which have one each, or what of them divides
    it. A CPU counts as one. Raises ConfigError where the settings have a number that does not, or too many."""
    there = max(1, torch.cuda.device_count())
    if (wanted := config.tensor_parallel) is None:
        return most_slices(model, min(ranks, there))
    key = "critic.server.tensor_parallel"
    if wanted > there:
        raise ConfigError(f"{key}: found {wanted}, wanted at most {there}, the GPUs that a rank of this node sees")
    check_divides(model, wanted, key)
    return wanted


class ServedCritic:
    """A `Completer`: the critic at the run's own server."""

    def __init__(self, server: CriticServer, client: Completer | None) -> None:
        """client: of the server; None on a rank whose engine's first rank asks."""
        self._server, self._client = server, client
        self.pause_s = client.pause_s if client else 0.0

    def add(self, request: Request) -> None:
        assert self._client is not None
        self._client.add(request)

    def step(self) -> list[Completion]:
        """Raises EngineError as the client does, and where the server has ended, whatever `endpoint.on_failure` is."""
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
