"""Requests to an OpenAI-compatible server, and the parsing of its answers.

Every text from a server passes through `without_key`; in an error message it is shortened to one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import anyio
import httpx2
import openai
from pydantic import BaseModel, BeforeValidator, Field

from capo_fast.config.schema import EndpointConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.masking import without_key
from capo_fast.engine.transport import api_key, headers, openai_client
from capo_fast.errors import ConfigError
from capo_fast.records import Completion, Request, unicode_text

CONNECT_S = 10.0

# ---- the server ----


def served_model(config: EndpointConfig, key: str) -> str:
    """The critic's name at the server, from its list of models. Raises EngineError and ConfigError."""
    try:
        text = anyio.run(_list_models, config, key)
    except (openai.APIConnectionError, httpx2.InvalidURL) as error:
        raise EngineError(f"critic at {config.url} can't be reached: {error_text(error, config, key)}") from None
    except openai.APIStatusError as error:
        found = f"{error_text(error, config, key)}{_path_hint(config)}"
        raise EngineError(f"critic at {config.url} doesn't list its models: {found}") from None
    try:
        names = [without_key(model.id, key) for model in _Models.model_validate(read_body(text)).data]
    except ValueError:
        found = shortened(text, key)
        raise EngineError(
            f"critic at {config.url}: found {found!r} where a list of models was wanted{_path_hint(config)}"
        ) from None
    if config.model is None and len(names) == 1:
        return names[0]
    if config.model not in names:
        offered = shortened(", ".join(names), key) or "none"
        raise ConfigError(f"endpoint.model: found {config.model}, wanted one that {config.url} offers: {offered}")
    return str(config.model)


def _path_hint(config: EndpointConfig) -> str:
    return "" if "/v1" in str(config.url) else "; is /v1 missing at the end of the address?"


async def _list_models(config: EndpointConfig, key: str) -> str:
    async with openai_client(config, key, retries=0, timeout_s=CONNECT_S, connect_s=CONNECT_S) as client:
        return (await client.models.with_raw_response.list(extra_headers=headers(key))).text


def async_client(config: EndpointConfig, key: str) -> openai.AsyncOpenAI:
    return openai_client(config, key, config.retries, config.timeout_s, CONNECT_S)


# ---- a request ----


def chat_request(
    request: Request, model: str, config: EndpointConfig, template_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of OpenAI's client. `top_k`, `structured_outputs`, `include_stop_str_in_output` and
    `chat_template_kwargs` are vLLM's. Every server accepts 31 bits of the seed. `endpoint.extra_body` overrides fields,
    and its null removes one.
    """
    fields = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        config.max_tokens_field: request.max_tokens,
        "seed": request.seed % 2**31,
        "top_k": None if request.top_k == -1 else request.top_k,
        "structured_outputs": {"regex": request.regex} if request.regex else None,
        "stop": list(request.stop) or None,
        "include_stop_str_in_output": True if request.stop else None,
        "chat_template_kwargs": dict(template_kwargs) or None,
    }
    body = {name: value for name, value in (fields | config.extra_body).items() if value is not None}
    return {"model": model, "messages": [{"role": "user", "content": request.message}], "extra_body": body}


# ---- an answer: OpenAI's client does not check types, and servers differ ----


_Text = Annotated[str, BeforeValidator(lambda value: unicode_text(value) if isinstance(value, str) else value)]


class _Model(BaseModel):
    id: _Text


class _Models(BaseModel):
    data: list[_Model]


class _Part(BaseModel):
    type: _Text = "text"
    text: _Text | None = None


class _Message(BaseModel):
    content: _Text | list[_Part] | None = None
    """Excludes a reasoning model's thinking, for which servers have other fields or other types of parts."""

    @property
    def text(self) -> str:
        parts = self.content if isinstance(self.content, list) else [_Part(text=self.content)]
        return "".join(part.text or "" for part in parts if part.type == "text")


class _Choice(BaseModel):
    message: _Message | None
    """None if a server's filter withheld it."""
    finish_reason: _Text | None = None


class _Chat(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


_Count = Annotated[int, Field(ge=0, le=2**40)]
"""A number of tokens; larger values are invalid."""


class _Cached(BaseModel):
    cached_tokens: _Count | None = None


class _Usage(BaseModel):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Cached | None = None


class _Paid(BaseModel):
    usage: _Usage | None = None


def read_body(text: str) -> Any:
    """The JSON of an answer. Raises ValueError if it is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_completion(request: Request, text: str, key: str) -> Completion:
    """Raises ValueError if the answer is not a chat completion."""
    choice, usage = _Chat.model_validate(read_body(text)).choices[0], _read_usage(text)
    cached = usage.prompt_tokens_details
    return Completion(
        id=request.id,
        token_ids=(),
        logprobs=(),
        text=without_key(choice.message.text, key) if choice.message else "",
        finished=choice.finish_reason == "stop",
        prompt_tokens=usage.prompt_tokens or 0,
        answer_tokens=usage.completion_tokens or 0,
        cached_tokens=(cached and cached.cached_tokens) or 0,
    )


def read_tokens(text: str) -> int:
    """Tokens that an answer cost, even if the rest of it can't be read; 0 if the server does not report it."""
    usage = _read_usage(text)
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)


def _read_usage(text: str) -> _Usage:
    try:
        return _Paid.model_validate(read_body(text)).usage or _Usage()
    except ValueError:
        return _Usage()


# ---- an error ----


def status_of(error: openai.APIError) -> int | None:
    """The status of a refusal; None for an error after which the client has retried."""
    if not isinstance(error, openai.APIStatusError) or error.status_code in (408, 409, 429) or error.status_code >= 500:
        return None
    return error.status_code


def error_text(error: Exception, config: EndpointConfig, key: str) -> str:
    """Status and message of the server (`401 Unauthorized: Invalid key`), or the cause if it sent none."""
    if isinstance(error, openai.APIStatusError):
        return _status_text(error, config, key)
    cause = error.__cause__ or error
    return shortened(str(cause), key) or type(cause).__name__


def _status_text(error: openai.APIStatusError, config: EndpointConfig, key: str) -> str:
    response = error.response
    status = f"{response.status_code} {response.reason_phrase}".strip()
    detail = f"to {response.headers['location']}" if response.has_redirect_location else _message(error.body)
    is_theirs = response.status_code == 401 and key == api_key(config)  # not the key of the run's own server
    hint = f" (key: {config.api_key_env}, {'' if key else 'not '}set)" if is_theirs else ""
    return shortened(f"{status}: {detail}" if detail else status, key) + hint


def _message(body: Any) -> str:
    """The message in an error's JSON (the client has unwrapped `error`), or the error's plain text."""
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body)
    return str(body or "")


def shortened(text: str, key: str) -> str:
    """One line of at most 300 characters, without the key."""
    return " ".join(without_key(text, key).split())[:300]
