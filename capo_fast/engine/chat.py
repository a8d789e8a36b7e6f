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
from pydantic import BaseModel, Field, ValidationError

from capo_fast.config import ConfigError, EndpointConfig
from capo_fast.engine.base import EngineError
from capo_fast.records import Completion, Request

CONNECT_S = 10.0

# ---- the server ----


def served_model(config: EndpointConfig) -> str:
    """The critic's name at the server, by its list of models. Raises EngineError and ConfigError."""
    try:
        with httpx2.Client(**connection(config)) as client:
            response = client.get("models", timeout=CONNECT_S)
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise EngineError(f"critic at {config.url} can't be reached: {words(error)}") from error
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
        offered = ", ".join(names) or "none"
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


class _Message(BaseModel):
    content: str | None = None
    """Without a reasoning model's thinking, for which servers have fields of their own."""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Cached(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None


class _Chat(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_completion(request: Request, response: httpx2.Response) -> Completion:
    """Raises ValidationError where the answer is no chat completion."""
    chat = _Chat.model_validate_json(response.content)
    [choice, *_], usage = chat.choices, chat.usage or _Usage()
    cached = usage.prompt_tokens_details
    return Completion(
        id=request.id,
        token_ids=(),
        logprobs=(),
        text=choice.message.content or "",
        finished=choice.finish_reason == "stop",
        prompt_tokens=usage.prompt_tokens,
        answer_tokens=usage.completion_tokens,
        cached_tokens=(cached and cached.cached_tokens) or 0,
    )


def refusal(response: httpx2.Response, config: EndpointConfig) -> str:
    """`401 Unauthorized: Invalid key`, in the server's own words."""
    try:
        body = response.json()
        error = body.get("error", body)
        message = error if isinstance(error, str) else error.get("message") or error.get("detail") or body
    except (ValueError, AttributeError):
        message = response.text
    hint = f" (key: {config.api_key_env}, {'' if _key(config) else 'not '}set)" if response.status_code == 401 else ""
    return f"{response.status_code} {response.reason_phrase}: {shortened(str(message), config)}{hint}"


def shortened(text: str, config: EndpointConfig) -> str:
    """One line of at most 300 letters, without the key."""
    line = " ".join(text.split())
    key = _key(config)
    return (line.replace(key, "***") if key else line)[:300]


def words(error: Exception) -> str:
    return str(error) or type(error).__name__


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
    return seconds if math.isfinite(seconds) else 0.0
