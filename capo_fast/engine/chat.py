"""What goes over the wire to an OpenAI-compatible server, and what its answers mean.

Every text of a server that reaches an error is one line, shortened, and without the key.
"""

from __future__ import annotations

import math
import os
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx2
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
        with httpx2.Client(**connection(config)) as client:
            response = client.get("models", timeout=CONNECT_S)
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise EngineError(f"critic at {config.url} can't be reached: {words(error, config)}") from error
    if response.status_code != 200:
        raise EngineError(f"critic at {config.url} doesn't list its models: {refusal(response, config)}")
    try:
        names = [model.id for model in _Models.model_validate_json(response.content).data]
    except ValidationError:
        found = shortened(response.text, config)
        raise EngineError(f"critic at {config.url}: found {found!r} where a list of models was wanted") from None
    if config.model is None and len(names) == 1:
        return names[0]
    if config.model not in names:
        offered = shortened(", ".join(names), config) or "none"
        raise ConfigError(f"endpoint.model: found {config.model}, wanted one that {config.url} offers: {offered}")
    return str(config.model)


def connection(config: EndpointConfig) -> dict[str, Any]:
    """What both clients are made with. A proxy of the environment is used, but never for this machine itself."""
    key = _key(config)
    return {
        "base_url": config.url,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx2.Timeout(None, connect=CONNECT_S),
        "verify": _certificates(),
        "mounts": {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
    }


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: each client would take a tenth of a second for its own."""
    return httpx2.create_ssl_context()


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
        **({"top_k": request.top_k} if request.top_k != -1 else {}),
        **({"structured_outputs": {"regex": request.regex}} if request.regex else {}),
    }


# ---- its answer ----


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


class Usage(BaseModel):
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    prompt_tokens_details: _Cached | None = None

    @property
    def tokens(self) -> int:
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


class _Paid(BaseModel):
    usage: Usage | None = None


def read_completion(request: Request, response: httpx2.Response) -> Completion:
    """Raises ValidationError where the answer is no chat completion."""
    choice, usage = _Chat.model_validate_json(response.content).choices[0], read_usage(response)
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


def read_usage(response: httpx2.Response) -> Usage:
    """What an answer has cost, also where the rest of it can't be read; nothing where the server doesn't say."""
    try:
        return _Paid.model_validate_json(response.content).usage or Usage()
    except ValidationError:
        return Usage()


def refusal(response: httpx2.Response, config: EndpointConfig) -> str:
    """`401 Unauthorized: Invalid key`, in the server's own words; `307 Temporary Redirect: to /login` of a redirect."""
    words = [f"{response.status_code} {response.reason_phrase}".strip(), _message(response)]
    hint = f" (key: {config.api_key_env}, {'' if _key(config) else 'not '}set)" if response.status_code == 401 else ""
    return shortened(": ".join(filter(None, words)), config) + hint


def _message(response: httpx2.Response) -> str:
    if response.has_redirect_location:
        return f"to {response.headers['location']}"
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error if isinstance(error, str) else error.get("message") or error.get("detail") or body)
    except (ValueError, AttributeError):
        return response.text


def shortened(text: str, config: EndpointConfig) -> str:
    """One line of at most 300 letters, without the key."""
    line = " ".join(text.split())
    key = _key(config)
    return (line.replace(key, "***") if key else line)[:300]


def words(error: Exception, config: EndpointConfig) -> str:
    return shortened(str(error), config) or type(error).__name__


def retry_after(response: httpx2.Response) -> float:
    """Seconds, from a number or a date; 0 where there is none or it makes no sense."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
