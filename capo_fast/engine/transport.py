"""The way to a critic's server: its key, the proxy, and one try with a deadline and a bounded answer."""

from __future__ import annotations

import os
import zlib
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any
from urllib.request import getproxies_environment, proxy_bypass

import anyio
import httpx2
import openai

from capo_fast.config.schema import EndpointConfig
from capo_fast.errors import ConfigError

LARGEST_ANSWER = 2**23
"""Bytes of one answer, decompressed."""
BODY_HEADERS = ("content-encoding", "content-length", "content-type", "transfer-encoding")


def openai_client(
    config: EndpointConfig, key: str, retries: int, timeout_s: float, connect_s: float
) -> openai.AsyncOpenAI:
    """Raises ConfigError where the environment's proxy can't be used."""
    return openai.AsyncOpenAI(
        base_url=config.url,
        api_key=key or "unset",  # the client demands one; `headers` takes it out again
        max_retries=retries,
        timeout=openai.Timeout(None, connect=connect_s),
        http_client=_Transport(str(config.url), timeout_s),
    )


class _Transport(openai.DefaultAsyncHttpxClient):
    """A redirect is an error, and a proxy of the environment is used.

    httpx limits the time of each read, and no size; here a try as a whole has a deadline, and its answer a limit.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        # A transport of our own: httpx makes one for every proxy of the environment, used or not, and some can't be.
        transport = httpx2.AsyncHTTPTransport(proxy=proxy_for(url), limits=openai.DEFAULT_CONNECTION_LIMITS)
        super().__init__(follow_redirects=False, transport=transport)
        self.timeout_s = timeout_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """One try, with the body of its answer."""
        request.headers["accept-encoding"] = "identity"
        try:
            with anyio.fail_after(self.timeout_s):
                return await self._answer(request, options | {"stream": True})
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"time-out after {self.timeout_s:g} s", request=request) from error

    async def _answer(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        response = await super().send(request, **options)
        try:
            packed = bytearray()
            async for chunk in response.aiter_raw():
                packed += chunk
                _check_size(packed, request)
        finally:
            await response.aclose()
        body = _unpacked(bytes(packed), response.headers.get("content-encoding", "identity"), request)
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in BODY_HEADERS]
        return httpx2.Response(
            response.status_code, headers=headers, content=body, request=request, extensions=response.extensions
        )


def _check_size(body: bytes | bytearray, request: httpx2.Request) -> None:
    if len(body) > LARGEST_ANSWER:  # an APIError, which OpenAI's client doesn't repeat the request after
        raise openai.APIConnectionError(message=f"an answer of more than {LARGEST_ANSWER:,} bytes", request=request)


def _unpacked(packed: bytes, encoding: str, request: httpx2.Request) -> bytes:
    """The body, where a server compressed it unasked: never more of it than is allowed, however well it packs."""
    if encoding == "identity":
        return packed
    if encoding not in ("gzip", "deflate"):
        message = f"an answer encoded as {encoding}, wanted identity, gzip or deflate"
        raise openai.APIConnectionError(message=message, request=request)
    try:
        body = zlib.decompressobj(wbits=47).decompress(packed, LARGEST_ANSWER + 1)  # 47: the header says which
    except zlib.error as error:
        raise openai.APIConnectionError(message=f"a damaged {encoding} answer: {error}", request=request) from None
    _check_size(body, request)
    return body


# ---- the proxy ----


def proxy_for(url: str) -> httpx2.Proxy | None:
    """The environment's proxy for this address; none for this machine itself. Raises ConfigError where it can't be
    used, without its address, which may hold a password."""
    address = httpx2.URL(url)
    proxies = getproxies_environment()
    scheme = address.scheme if address.scheme in proxies else "all"
    if scheme not in proxies or is_loopback(address.host) or proxy_bypass(address.host):
        return None
    text = proxies[scheme] if "://" in proxies[scheme] else f"http://{proxies[scheme]}"
    try:
        proxy = httpx2.Proxy(text)
    except (ValueError, httpx2.InvalidURL):
        raise _unusable(scheme, f"an address with {text.partition('://')[0]}:// that is no proxy's") from None
    if proxy.url.scheme in ("socks5", "socks5h") and find_spec("socksio") is None:
        raise _unusable(scheme, f"a {proxy.url.scheme} proxy, which needs the package socksio (pip install socksio)")
    return proxy


def _unusable(scheme: str, found: str) -> ConfigError:
    names = [name for name in os.environ if name.lower() == f"{scheme}_proxy"]
    return ConfigError(f"{min(names, key=str.isupper)}: found {found}, wanted http or https, or the host in NO_PROXY")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "critic.org")]
    [True, True, True, True, False]
    """
    try:
        address = ip_address(host)
    except ValueError:
        return f".{host.lower().rstrip('.')}".endswith(".localhost")
    return address.is_loopback or address.is_unspecified


# ---- the key ----


def headers(key: str) -> dict[str, Any]:
    """Of each request: the key, if there is one, and nothing that the environment holds for OpenAI."""
    omitted = openai.Omit()
    authorization = f"Bearer {key}" if key else omitted
    return {"Authorization": authorization, "OpenAI-Organization": omitted, "OpenAI-Project": omitted}


def api_key(config: EndpointConfig) -> str:
    """That of `endpoint.api_key_env`, empty where the variable is unset. Raises ConfigError."""
    key = os.environ.get(config.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"endpoint.api_key_env: the key in {config.api_key_env} holds signs that no key has")
    return key
