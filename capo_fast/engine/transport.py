"""HTTP transport to a critic's server: key, proxy, and single tries with a deadline and a size limit of the answer."""

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
"""Limit of one answer, bytes after decompression."""
BODY_HEADERS = ("content-encoding", "content-length", "content-type", "transfer-encoding")


def openai_client(
    config: EndpointConfig, key: str, retries: int, timeout_s: float, connect_s: float
) -> openai.AsyncOpenAI:
    """OpenAI's client with our transport. Raises ConfigError if the environment's proxy can't be used."""
    return openai.AsyncOpenAI(
        base_url=config.url,
        api_key=key or "unset",  # the client requires one; `headers` removes it
        max_retries=retries,
        timeout=openai.Timeout(None, connect=connect_s),
        http_client=_Transport(str(config.url), timeout_s),
    )


class _Transport(openai.DefaultAsyncHttpxClient):
    """HTTP client that treats a redirect as an error and uses the environment's proxy.

    httpx limits the time of each read and no size. Here the whole try has a deadline, and its answer a size limit.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        # Our own transport: httpx makes one for every proxy of the environment and fails on an unusable one.
        transport = httpx2.AsyncHTTPTransport(proxy=proxy_for(url), limits=openai.DEFAULT_CONNECTION_LIMITS)
        super().__init__(follow_redirects=False, transport=transport)
        self.timeout_s = timeout_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """One try; the response contains its body."""
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
    if len(body) > LARGEST_ANSWER:  # an APIError: OpenAI's client does not retry after it
        raise openai.APIConnectionError(message=f"an answer of more than {LARGEST_ANSWER:,} bytes", request=request)


def _unpacked(packed: bytes, encoding: str, request: httpx2.Request) -> bytes:
    """The body, decompressed up to the size limit: some servers compress it although the request does not allow it."""
    if encoding == "identity":
        return packed
    if encoding not in ("gzip", "deflate"):
        message = f"an answer encoded as {encoding}, wanted identity, gzip or deflate"
        raise openai.APIConnectionError(message=message, request=request)
    try:
        body = zlib.decompressobj(wbits=47).decompress(packed, LARGEST_ANSWER + 1)  # 47: zlib or gzip, by the header
    except zlib.error as error:
        raise openai.APIConnectionError(message=f"a damaged {encoding} answer: {error}", request=request) from None
    _check_size(body, request)
    return body


# ---- the proxy ----


def proxy_for(url: str) -> httpx2.Proxy | None:
    """The environment's proxy for this address; None for this machine itself. Raises ConfigError if it can't be used;
    the message omits its address, which may contain a password."""
    address = httpx2.URL(url)
    proxies = getproxies_environment()
    scheme = address.scheme if address.scheme in proxies else "all"
    if scheme not in proxies or is_loopback(address.host) or proxy_bypass(address.host):
        return None
    text = proxies[scheme] if "://" in proxies[scheme] else f"http://{proxies[scheme]}"
    try:
        proxy = httpx2.Proxy(text)
    except (ValueError, httpx2.InvalidURL):
        raise _unusable(scheme, f"an address with {text.partition('://')[0]}:// that is not a proxy's") from None
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
    """Headers of each request: the key, if there is one, and none of the environment's settings for OpenAI."""
    omitted = openai.Omit()
    authorization = f"Bearer {key}" if key else omitted
    return {"Authorization": authorization, "OpenAI-Organization": omitted, "OpenAI-Project": omitted}


def api_key(config: EndpointConfig) -> str:
    """The key in the variable `endpoint.api_key_env`, empty if it is unset. Raises ConfigError."""
    key = os.environ.get(config.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"endpoint.api_key_env: the key in {config.api_key_env} contains characters that no key has")
    return key
