"""A critic at any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one): chat completions over HTTP.

    add -> [wait for one of `endpoint.concurrency` places -> try, pause, try again ...] -> step

One thread with an event loop holds the connections, so that neither `add` nor `step` waits. A try that may do better
next time (no connection, time-out, 408, 409, 429, 5xx, an answer that is none) is repeated after a growing pause. What
the server refuses for good stops the run with its own words. One that has answered before refuses that request alone,
which is given up, or is one truncated answer where its prompt is too long.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from random import Random
from typing import NoReturn

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal
from pydantic import ValidationError

from capo_fast.config.schema import EndpointConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.breaker import Breaker, GivenUp
from capo_fast.engine.chat import (
    chat_request,
    connection,
    read_completion,
    read_usage,
    refusal,
    retry_after,
    served_model,
    shortened,
    words,
)
from capo_fast.records import Completion, Request

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 300.0
"""A server that asks to be left alone for longer counts as one that is not there."""

_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|prompt is too long|inputs?\W+tokens \+", re.IGNORECASE)


class _Unanswered(Exception):
    """A try failed, and another may not; `after_s` is how long the server wants to be left alone."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class EndpointCritic:
    """A `Generator` whose answers come from a server. Requests are asked by their `message`, as one user turn."""

    pause_s = 0.005

    def __init__(
        self,
        config: EndpointConfig,
        budget_left: int | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`budget_left`: this rank's tokens of `endpoint.budget_tokens`; None: no limit.

        Raises EngineError where the server can't be reached, ConfigError where it doesn't offer the model.
        """
        self.model = served_model(config)
        self.spent_tokens = 0
        """Of prompts and answers, as the server counts them, since this object was made."""
        self._config, self._budget, self._sleep = config, budget_left, sleep
        self._ended: SimpleQueue[Future[Completion]] = SimpleQueue()
        self._under_way: set[Future[Completion]] = set()
        self._broken: BaseException | None = None
        self._breaker = Breaker(LONGEST_PAUSE_S)
        self._places = anyio.CapacityLimiter(config.concurrency)
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(name="endpoint"))
        limits = httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        client = httpx2.AsyncClient(**connection(config), limits=limits)
        self._client = self._stack.enter_context(self._portal.wrap_async_context_manager(client))

    def add(self, request: Request) -> None:
        future = self._portal.start_task_soon(self._answer, request)
        self._under_way.add(future)
        future.add_done_callback(self._ended.put)

    def step(self) -> list[Completion]:
        """The answers that ended since the last step, at once.

        Raises EngineError, after the last of the answers that did come, where the server refused a request, or gave
        none under `endpoint.on_failure: stop`.
        """
        futures = [self._ended.get() for _ in range(self._ended.qsize())]
        self._under_way.difference_update(futures)
        errors = [error for future in futures if (error := future.exception())]
        self._broken = self._broken or next(iter(errors), None)
        completions = [future.result() for future in futures if future.exception() is None]
        if self._broken and not completions:
            raise self._broken
        return completions

    def close(self) -> None:
        for future in self._under_way:
            future.cancel()
        self._stack.close()

    # ---- in the event loop's thread ----

    async def _answer(self, request: Request) -> Completion:
        async with self._places:
            try:
                return await self._persist(request)
            except GivenUp as error:
                if self._config.on_failure == "stop":
                    raise EngineError(str(error)) from error.__cause__
                return Completion(request.id, (), (), "", finished=False, error=str(error))

    async def _persist(self, request: Request) -> Completion:
        """The answer of the first try that gets one. A request that waits for its next try keeps its place."""
        start, jitter, tries, pause = time.monotonic(), Random(request.seed), 0, FIRST_PAUSE_S
        while True:
            probe = await self._breaker.admit()
            self._check_budget()
            tries += 1
            try:
                return await self._try(request)
            except _Unanswered as error:
                if probe or tries > self._config.retries or error.after_s > LONGEST_RETRY_AFTER_S:
                    reason = self._no_answer(start, tries, error)
                    self._breaker.given_up(start, probe or self._config.on_failure == "stop", reason)
                    raise GivenUp(reason) from error
                # The jitter comes on top, or all that were told the same would come back in the same instant.
                wait = error.after_s + pause * (1 - jitter.random() / 2)
            await self._sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _check_budget(self) -> None:
        if self._budget is not None and self.spent_tokens >= self._budget:
            raise GivenUp(f"endpoint.budget_tokens: found {self._config.budget_tokens}, and they are spent")

    def _no_answer(self, start: float, tries: int, error: _Unanswered) -> str:
        after = f"after {tries} {'try' if tries == 1 else 'tries'} over {time.monotonic() - start:.0f} s"
        return f"critic at {self._config.url}: no answer {after}: {error}"

    async def _try(self, request: Request) -> Completion:
        response = await self._post(request)
        if response.status_code != 200:
            return await self._refused(request, response)
        self.spent_tokens += read_usage(response).tokens
        completion = self._read(request, response)
        self._breaker.heard()
        if self._budget is not None and not completion.prompt_tokens:
            await self._give_up("doesn't say what it used: no endpoint.budget_tokens there")
        self._breaker.answered = True
        return completion

    async def _post(self, request: Request) -> httpx2.Response:
        try:
            with self._breaker.trying(), anyio.fail_after(self._config.timeout_s):
                return await self._client.post("chat/completions", json=chat_request(request, self.model))
        except TimeoutError:
            raise _Unanswered(f"none within endpoint.timeout_s ({self._config.timeout_s:g} s)") from None
        except httpx2.RequestError as error:
            raise _Unanswered(words(error, self._config)) from error

    def _read(self, request: Request, response: httpx2.Response) -> Completion:
        try:
            return read_completion(request, response)
        except ValidationError:
            found = shortened(response.text, self._config)[:80]
            raise _Unanswered(f"found {found!r} where a chat completion was wanted") from None

    async def _refused(self, request: Request, response: httpx2.Response) -> Completion:
        """The truncated answer that a refusal amounts to where the prompt is too long."""
        code, said = response.status_code, refusal(response, self._config)
        if code in (408, 409, 429) or code >= 500:
            raise _Unanswered(said, retry_after(response))
        self._breaker.heard()
        if code in (401, 403, 404):
            raise EngineError(f"critic at {self._config.url} refuses a request: {said}")
        # Before any answer it may be critic.max_tokens that is too long, and so every request.
        if code in (400, 413, 422) and _TOO_LONG.search(said) and await self._breaker.ever_answered():
            return Completion(request.id, (), (), "", finished=False)
        return await self._give_up(f"refuses a request: {said}")

    async def _give_up(self, it: str) -> NoReturn:
        """Raises EngineError where the server answers no request at all, else GivenUp: it is this one alone."""
        kind = GivenUp if await self._breaker.ever_answered() else EngineError
        raise kind(f"critic at {self._config.url} {it}")
