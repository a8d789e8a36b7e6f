"""A critic at any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one), through OpenAI's client.

    add -> [wait for one of `endpoint.concurrency` places -> chat completion] -> step

One thread with an event loop holds the connections, so that neither `add` nor `step` blocks. OpenAI's client retries a
request that may succeed later (no connection, time-out, 408, 409, 429, 5xx) after a pause of 0.5 s to 8 s, or after the
seconds that the server requests, at most 120. A request whose answer is not a chat completion is given up. A refusal
(any other status) stops the run. If the server has answered other requests, only this request is given up; if its
prompt is too long, it counts as one truncated answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NoReturn

import anyio
import openai
from anyio.from_thread import start_blocking_portal

from capo_fast.config.schema import EndpointConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.chat import (
    async_client,
    chat_request,
    error_text,
    read_completion,
    read_tokens,
    served_model,
    shortened,
    status_of,
)
from capo_fast.engine.transport import api_key, headers
from capo_fast.records import Completion, Request

FAILURES, PAUSE_S = 3, 60.0
POLL_S = 0.02

_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|prompt is too long|inputs?\W+tokens \+", re.IGNORECASE)


class GivenUp(Exception):
    """This request gets no answer; `endpoint.on_failure` applies."""


class Breaker:
    """Circuit breaker: refuses requests for PAUSE_S after `limit` of them in a row were given up.

    A server that refuses a request is reachable, so a refusal resets the count, as an answer does. After the pause all
    waiting requests are sent, `endpoint.concurrency` at once, and the first that is given up starts the next pause.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._failures, self._closed_until, self._reason = limit, 0, 0.0, ""

    def check(self) -> None:
        """Raises GivenUp during the pause."""
        if time.monotonic() < self._closed_until:
            raise GivenUp(self._reason)

    def answered(self) -> None:
        """The server answered or refused a request."""
        self._failures, self._closed_until = 0, 0.0

    def given_up(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._closed_until, self._reason = time.monotonic() + PAUSE_S, reason


class EndpointCritic:
    """A `Completer` whose answers come from a server. Each request's `message` is sent as one user turn."""

    pause_s = 0.005

    def __init__(
        self,
        config: EndpointConfig,
        budget_left: int | None = None,
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
        key: str | None = None,
        counted_for: str | None = None,
    ) -> None:
        """`budget_left`: this rank's tokens of `endpoint.budget_tokens`; None: no limit. `template_kwargs`: arguments
        of the chat template, which the server renders. `key`: None: the key in `endpoint.api_key_env`. `counted_for`:
        another setting that needs the server's token counts.

        Raises EngineError if the server can't be reached, ConfigError if it doesn't offer the model.
        """
        self._key = api_key(config) if key is None else key
        self.model = served_model(config, self._key)
        self.spent_tokens = 0
        """Tokens of prompts and answers since this object was made, as counted by the server."""
        self._config, self._budget, self._template_kwargs = config, budget_left, template_kwargs
        self._counted_for = counted_for if budget_left is None else "endpoint.budget_tokens"
        self._ended: SimpleQueue[Future[Completion]] = SimpleQueue()
        self._under_way: set[Future[Completion]] = set()
        self._broken: BaseException | None = None
        self._breaker = Breaker(1 if config.on_failure == "stop" else FAILURES)
        self._answered, self._undecided = False, 0
        self._places = anyio.CapacityLimiter(config.concurrency)
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(name="endpoint"))
        self._client = self._stack.enter_context(
            self._portal.wrap_async_context_manager(async_client(config, self._key))
        )

    def add(self, request: Request) -> None:
        future = self._portal.start_task_soon(self._answer, request)
        self._under_way.add(future)
        future.add_done_callback(self._ended.put)

    def step(self) -> list[Completion]:
        """The answers that ended since the last step; returns at once.

        Raises EngineError if the server refused a request or, under `endpoint.on_failure: stop`, did not answer one;
        answers that did come are returned first.
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
                self._breaker.check()
                self._check_budget()
                return await self._send(request)
            except GivenUp as error:
                if self._config.on_failure == "stop":
                    raise EngineError(str(error)) from None
                return Completion(request.id, (), (), "", finished=False, error=str(error))

    def _check_budget(self) -> None:
        if self._budget is not None and self.spent_tokens >= self._budget:
            raise GivenUp(f"endpoint.budget_tokens: all {self._config.budget_tokens} tokens are spent")

    async def _send(self, request: Request) -> Completion:
        start = time.monotonic()
        create = self._client.chat.completions.with_raw_response.create
        try:
            fields = chat_request(request, self.model, self._config, self._template_kwargs)
            raw = await create(**fields, extra_headers=headers(self._key))
        except openai.APIError as error:
            if (status := status_of(error)) is not None:
                return await self._refused(request, status, error_text(error, self._config, self._key))
            limits = f"endpoint.timeout_s: {self._config.timeout_s:g}, endpoint.retries: {self._config.retries}"
            seconds = f"{time.monotonic() - start:.0f} s"
            self._give_up(f"no answer in {seconds} ({limits}): {error_text(error, self._config, self._key)}")
        return await self._read(request, raw.text)

    async def _read(self, request: Request, text: str) -> Completion:
        self.spent_tokens += read_tokens(text)
        try:
            completion = read_completion(request, text, self._key)
        except ValueError:
            self._give_up(f"found {shortened(text, self._key)[:80]!r} where a chat completion was wanted")
        self._breaker.answered()
        counted = completion.prompt_tokens and (completion.answer_tokens or not completion.text)
        if self._counted_for is not None and not counted:
            await self._refuse(f"does not report token counts, which {self._counted_for} needs")
        self._answered = True
        return completion

    def _give_up(self, what: str) -> NoReturn:
        reason = f"critic at {self._config.url}: {what}"
        self._breaker.given_up(reason)
        raise GivenUp(reason) from None  # from None: a cause has the server's raw text, which may contain the key

    async def _refused(self, request: Request, status: int, message: str) -> Completion:
        """A truncated answer if the prompt is too long; else raises."""
        self._breaker.answered()
        if status in (401, 403, 404):
            raise EngineError(f"critic at {self._config.url} refuses a request: {message}")
        # Before any answer the cause may be critic.max_tokens, and then every request is too long.
        if status in (400, 413, 422) and _TOO_LONG.search(message) and await self._ever_answered():
            return Completion(request.id, (), (), "", finished=False)
        return await self._refuse(f"refuses a request: {message}")

    async def _refuse(self, what: str) -> NoReturn:
        """Raises EngineError if the server has answered no request at all, else GivenUp for this one."""
        kind = GivenUp if await self._ever_answered() else EngineError
        raise kind(f"critic at {self._config.url} {what}")

    async def _ever_answered(self) -> bool:
        """Whether the server has answered any request. Before the first answer, wait for running requests, because a
        refusal is faster than an answer."""
        self._undecided += 1
        while not self._answered and self._undecided < self._places.borrowed_tokens:
            await anyio.sleep(POLL_S)
        self._undecided -= 1
        return self._answered
