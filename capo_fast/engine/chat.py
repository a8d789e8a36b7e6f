"""Requests to an OpenAI-compatible server, and what its answers mean.

Every text of a server that reaches an error is one line, shortened, and without the key.
"""

from __future__ import annotations

import os
from typing import Any

import anyio
import httpx2
import openai
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from capo_fast.config.schema import EndpointConfig
from capo_fast.engine.base import EngineError
from capo_fast.errors import ConfigError
from capo_fast.records import Completion, Request

CONNECT_S = 10.0

# ---- the server ----


def served_model(config: EndpointConfig) -> str:
    """The critic's name at the server, by its list of models. Raises EngineError and ConfigError."""
    try:
        text = anyio.run(_list_models, config)
    except (openai.APIConnectionError, httpx2.InvalidURL) as error:
        raise EngineError(f"critic at {config.url} can't be reached: {words(error, config)}") from error
    except openai.APIStatusError as error:
        raise EngineError(f"critic at {config.url} doesn't list its models: {words(error, config)}") from error
    try:
        names = [model.id for model in _Models.model_validate_json(text).data]
    except ValidationError:
        found = shortened(text, config)
        raise EngineError(f"critic at {config.url}: found {found!r} where a list of models was wanted") from None
    if config.model is None and len(names) == 1:
        return names[0]
    if config.model not in names:
        offered = shortened(", ".join(names), config) or "none"
        raise ConfigError(f"endpoint.model: found {config.model}, wanted one that {config.url} offers: {offered}")
    return str(config.model)


async def _list_models(config: EndpointConfig) -> str:
    async with _client(config, retries=0, timeout_s=CONNECT_S) as client:
        return (await client.models.with_raw_response.list(extra_headers=headers(config))).text


def async_client(config: EndpointConfig) -> openai.AsyncOpenAI:
    return _client(config, config.retries, config.timeout_s)


def _client(config: EndpointConfig, retries: int, timeout_s: float) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=config.url,
        api_key=_key(config) or "unset",  # the client demands one; `headers` takes it out again
        max_retries=retries,
        timeout=openai.Timeout(None, connect=CONNECT_S),
        http_client=_Transport(timeout_s),
    )


class _Transport(openai.DefaultAsyncHttpxClient):
    """A redirect is an error. A proxy of the environment is used, but never for this machine itself.

    httpx limits the time of each read; here a try as a whole has a deadline, however slowly its answer comes.
    """

    def __init__(self, timeout_s: float) -> None:
        local = {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}
        super().__init__(follow_redirects=False, mounts=local)
        self.timeout_s = timeout_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """One try, with the body of its answer."""
        try:
            with anyio.fail_after(self.timeout_s):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"time-out after {self.timeout_s:g} s", request=request) from error


def headers(config: EndpointConfig) -> dict[str, Any]:
    """Of each request: the key of `endpoint.api_key_env`, and nothing else that the environment holds for OpenAI."""
    key, omitted = _key(config), openai.Omit()
    authorization = f"Bearer {key}" if key else omitted
    return {"Authorization": authorization, "OpenAI-Organization": omitted, "OpenAI-Project": omitted}


def _key(config: EndpointConfig) -> str:
    key = os.environ.get(config.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"endpoint.api_key_env: the key in {config.api_key_env} holds signs that no key has")
    return key


# ---- a request ----


def chat_request(request: Request, model: str) -> dict[str, Any]:
    """`top_k` and `structured_outputs` are vLLM's; 31 bits of the seed are what every server takes."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": request.message}],
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": request.seed % 2**31,
        "extra_body": {
            **({"top_k": request.top_k} if request.top_k != -1 else {}),
            **({"structured_outputs": {"regex": request.regex}} if request.regex else {}),
        },
    }


# ---- its answer: OpenAI's client checks no type, and servers differ ----


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Part(BaseModel):
    type: str = "text"
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    """Without a reasoning model's thinking, for which servers have fields, or types of parts, of their own."""

    @property
    def text(self) -> str:
        parts = self.content if isinstance(self.content, list) else [_Part(text=self.content)]
        return "".join(part.text or "" for part in parts if part.type == "text")


class _Choice(BaseModel):
    message: _Message | None
    """None where a server's filter withheld it."""
    finish_reason: str | None = None


class _Chat(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Cached(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    prompt_tokens_details: _Cached | None = None


class _Paid(BaseModel):
    usage: _Usage | None = None


def read_completion(request: Request, text: str) -> Completion:
    """Raises ValidationError where the answer is no chat completion."""
    choice, usage = _Chat.model_validate_json(text).choices[0], _read_usage(text)
    cached = usage.prompt_tokens_details
    return Completion(
        id=request.id,
        token_ids=(),
        logprobs=(),
        text=choice.message.text if choice.message else "",
        finished=choice.finish_reason == "stop",
        prompt_tokens=usage.prompt_tokens or 0,
        answer_tokens=usage.completion_tokens or 0,
        cached_tokens=(cached and cached.cached_tokens) or 0,
    )


def read_tokens(text: str) -> int:
    """Tokens that an answer cost, also where the rest of it can't be read; 0 where the server doesn't say."""
    usage = _read_usage(text)
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)


def _read_usage(text: str) -> _Usage:
    try:
        return _Paid.model_validate_json(text).usage or _Usage()
    except ValidationError:
        return _Usage()


# ---- its errors ----


def status_of(error: openai.APIError) -> int | None:
    """The status of a refusal; None of an error that the client has repeated the request after."""
    if not isinstance(error, openai.APIStatusError) or error.status_code in (408, 409, 429) or error.status_code >= 500:
        return None
    return error.status_code


def words(error: Exception, config: EndpointConfig) -> str:
    """`401 Unauthorized: Invalid key`, in the server's own words, or why there are none."""
    if isinstance(error, openai.APIStatusError):
        return _status_words(error, config)
    cause = error.__cause__ or error
    return shortened(str(cause), config) or type(cause).__name__


def _status_words(error: openai.APIStatusError, config: EndpointConfig) -> str:
    response = error.response
    status = f"{response.status_code} {response.reason_phrase}".strip()
    said = f"to {response.headers['location']}" if response.has_redirect_location else _message(error.body)
    hint = f" (key: {config.api_key_env}, {'' if _key(config) else 'not '}set)" if response.status_code == 401 else ""
    return shortened(f"{status}: {said}" if said else status, config) + hint


def _message(body: Any) -> str:
    """Of an error's JSON, which the client has taken out of `error`, or its plain text."""
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body)
    return str(body or "")


def shortened(text: str, config: EndpointConfig) -> str:
    """One line of at most 300 letters, without the key."""
    line = " ".join(text.split())
    key = _key(config)
    return (line.replace(key, "***") if key else line)[:300]
