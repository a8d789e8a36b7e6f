"""The critic at a hostile or broken server: no answer crashes a run or reveals the key."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import httpx2
import pytest
from scripted_server import Scripted, chat, critic_at, in_turn, query, refused, request

from capo_fast.config.schema import EndpointConfig
from capo_fast.engine import transport
from capo_fast.engine.base import EngineError
from capo_fast.engine.chat import chat_request
from capo_fast.engine.endpoint import EndpointCritic
from capo_fast.engine.masking import without_key
from capo_fast.engine.transport import LARGEST_ANSWER, proxy_for
from capo_fast.errors import ConfigError

KEY = "sk-Qw/8+tz=='Zb\\9"


@pytest.fixture
def server():
    scripted = Scripted()
    yield scripted
    scripted.stop()


@pytest.fixture
def keyed(server, monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", KEY)
    with critic_at(server.url, api_key_env="CRITIC_KEY", on_failure="outcome", concurrency=1) as critic:
        yield critic


# ---- the key ----

ECHOES = [
    KEY,
    quote(KEY),
    quote(KEY, safe="").lower(),
    json.dumps(KEY),
    repr({"authorization": f"Bearer {KEY}"}),
    KEY.encode().hex(),
    *(b64encode(f"{before}{KEY}:x".encode()).decode() for before in ("", "u", "me")),
    *(urlsafe_b64encode(f"{before}{KEY}:x".encode()).decode() for before in ("", "u", "me")),
]  # fmt: skip


@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_is_masked_in_every_spelling(echo):
    masked = without_key(f"<{echo}>", KEY)
    assert "***" in masked
    assert len(masked) < 12 + len("{'authorization': 'Bearer '}")


def test_no_letter_of_a_key_in_base64_remains():
    for before in ("", "u", "me"):
        text = b64encode(f"{before}{KEY}".encode()).decode()
        assert without_key(text, KEY) in ("***", "d***", "bW***")


def test_a_short_key_masks_no_ordinary_word():
    assert without_key("Judgment: No, none", "none") == "Judgment: No, none"
    assert without_key("Judgment: No", "") == "Judgment: No"


def test_an_echoed_key_is_in_no_answer(server, keyed):
    parts = [{"type": "text", "text": KEY[:7]}, {"type": "text", "text": KEY[7:]}]
    escaped = json.dumps(chat(KEY)[1]).replace("sk-", "\\u0073k-")
    server.respond = in_turn(chat(f"Judgment: Yes, {KEY}"), chat(parts), (200, escaped), refused(400, KEY), (200, KEY))
    answers = [query(keyed)["c"] for _ in range(5)]
    assert [answer.text for answer in answers] == ["Judgment: Yes, ***", "***", "***", "", ""]
    assert [answer.error and "***" in answer.error for answer in answers] == [None, None, None, True, True]
    assert not any(KEY in repr(answer) for answer in answers)


def test_an_echoed_key_is_in_no_error_and_in_no_cause(server, monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", KEY)
    server.respond = lambda body: refused(500, f"for Bearer {KEY}")
    with (
        critic_at(server.url, api_key_env="CRITIC_KEY") as critic,
        pytest.raises(EngineError, match=r"\*\*\*") as error,
    ):
        query(critic)
    assert KEY not in str(error.getrepr(style="short"))
    server.models = (200, {"data": [{"id": KEY}]})
    assert EndpointCritic(EndpointConfig(url=server.url, api_key_env="CRITIC_KEY")).model == "***"


# ---- invalid Unicode ----


def test_invalid_unicode_is_replaced(server):
    invalid = json.dumps(chat("AB")[1]).encode().replace(b"AB", b"A\xff\xfeB\xc3")
    server.respond = in_turn(chat("a\ud800b\udfffc\0d\ud83d\ude00"), (200, invalid), chat("\udead", finish="\udead"))
    with critic_at(server.url, concurrency=1) as critic:
        texts = [query(critic)["c"].text for _ in range(3)]
    assert texts == ["a\ufffdb\ufffdc\ufffdd\U0001f600", "A\ufffd\ufffdB\ufffd", "\ufffd"]
    assert "".join(texts).encode()


# ---- invalid and oversized bodies ----

BODIES = {
    "torn gzip": ((200, b"\x1f\x8b torn", {"content-encoding": "gzip"}), "a damaged gzip answer: "),
    "brotli": ((200, b"x", {"content-encoding": "br"}), "an answer encoded as br, wanted identity, gzip or deflate"),
    "too short": ((200, "{}", {"content-length": 10**9}), "peer closed connection"),
    "no length": ((200, "{}", {"content-length": "-7"}), "Content-Length"),
    "deep": ((200, "[" * 10**6), "found '[[[["),
    "digits": ((200, '{"choices": ' + "9" * 10**5 + "}"), "where a chat completion was wanted"),
    "odd charset": ((500, "{}", {"content-type": "application/json; charset=zlib"}), "500 Internal Server Error"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_not_an_answer_is_a_failed_request(server, name):
    reply, message = BODIES[name]
    server.respond = lambda body: reply
    with critic_at(server.url, on_failure="outcome") as critic:
        error = query(critic)["c"].error
    assert message in error and "\n" not in error


def test_an_answer_that_unpacks_to_a_hundred_times_its_size_is_refused(server):
    bomb = gzip.compress(bytes(8 * LARGEST_ANSWER), 1)
    server.respond = lambda body: (200, bomb, {"content-encoding": "gzip"})
    with critic_at(server.url, on_failure="outcome") as critic:
        tracemalloc.start()
        assert f"an answer of more than {LARGEST_ANSWER:,} bytes" in query(critic)["c"].error
        assert tracemalloc.get_traced_memory()[1] < 4 * LARGEST_ANSWER
        tracemalloc.stop()
        server.respond = lambda body: (200, gzip.compress(json.dumps(chat()[1]).encode()), {"content-encoding": "gzip"})
        assert query(critic)["c"].text == "Judgment: Yes"


def test_an_endless_answer_is_cut(server):
    server.respond = lambda body: (200, b" " * 2**16, {"content-length": 10**12})
    with critic_at(server.url, on_failure="outcome") as critic:
        server.endless = True
        assert f"an answer of more than {LARGEST_ANSWER:,} bytes" in query(critic)["c"].error
        server.endless = False


# ---- fields for hosted models ----


def test_fields_of_a_request_are_settings():
    config = EndpointConfig(
        max_tokens_field="max_completion_tokens", extra_body={"temperature": None, "seed": 7, "reasoning_effort": "low"}
    )
    assert chat_request(request(), "o9", config, {"enable_thinking": False})["extra_body"] == {
        "top_p": 0.9, "max_completion_tokens": 30, "seed": 7, "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip


# ---- proxies ----


@pytest.fixture
def proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch.setenv


def test_a_proxy_of_the_environment_is_used(proxies):
    proxies("HTTPS_PROXY", "proxy.org:3128")
    proxies("NO_PROXY", "critics.org")
    assert proxy_for("https://host/v1").url == httpx2.URL("http://proxy.org:3128")
    assert proxy_for("http://host/v1") is proxy_for("https://one.critics.org/v1") is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ALL_PROXY", "socks5h://me:secret@host:1", "found a socks5h proxy, which needs the package socksio"),
        ("https_proxy", "socks4://me:secret@host:1", "found an address with socks4:// that is not a proxy's"),
        ("HTTPS_PROXY", "http://me:secret@host:port", "found an address with http:// that is not a proxy's"),
    ],
)
def test_an_unusable_proxy_is_named_without_its_password(proxies, monkeypatch, name, value, message):
    monkeypatch.setattr(transport, "find_spec", lambda package: None)
    proxies(name, value)
    with pytest.raises(ConfigError) as error:
        EndpointCritic(EndpointConfig(url="https://host/v1"))
    assert str(error.value).startswith(f"{name}: {message}")
    assert "secret" not in str(error.value)
    assert proxy_for("https://localhost:8000/v1") is proxy_for("http://[::1]/v1") is None
