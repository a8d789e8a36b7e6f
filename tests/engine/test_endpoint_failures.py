"""The critic on a server that fails or refuses: requests are retried, are abandoned, or stop the run."""

from __future__ import annotations

import re
import threading
import time

import pytest
from openai._constants import INITIAL_RETRY_DELAY, MAX_RETRY_AFTER_DELAY, MAX_RETRY_DELAY
from scripted_server import TOO_LONG, Scripted, chat, critic_at, in_turn, query, query_until_failure, refused, request

from capo_fast.config.rules import FIRST_PAUSE_S, LONGEST_PAUSE_S
from capo_fast.engine.base import EngineError
from capo_fast.engine.endpoint import FAILURES


@pytest.fixture
def server():
    scripted = Scripted()
    yield scripted
    scripted.stop()


# ---- temporary failures ----


def test_a_transient_failure_is_retried_after_the_pause_that_the_server_requests(server):
    soon = {"Retry-After": "0.01"}
    server.respond = in_turn(*((*refused(code), soon) for code in (408, 409, 429, 500, 503)), chat("at last"))
    with critic_at(server.url, retries=5) as critic:
        assert query(critic)["c"].text == "at last"
    assert len(server.bodies) == 6


def test_a_server_that_requests_more_than_two_minutes_counts_as_unreachable(server):
    server.respond = lambda body: (*refused(429, "slowly"), {"Retry-After": "3600"})
    line = (
        rf"critic at {server.url}: no answer in \d+ s \(endpoint\.timeout_s: 300, endpoint\.retries: 3\): "
        "429 Too Many Requests: slowly$"
    )
    with critic_at(server.url, retries=3) as critic, pytest.raises(EngineError, match=line):
        query(critic)
    assert len(server.bodies) == 1


def test_a_try_has_a_deadline(server):
    release = threading.Event()
    server.respond = lambda body: release.wait(30) and chat()
    with critic_at(server.url, timeout_s=0.05) as critic, pytest.raises(EngineError, match=r": time-out after 0.05 s$"):
        query(critic)
    release.set()


def test_a_slow_answer_has_the_same_deadline(server):
    with critic_at(server.url, timeout_s=0.3, retries=1) as critic:
        server.pause_s = 0.02  # each byte is in time; the whole answer takes several seconds
        with pytest.raises(EngineError, match=r": time-out after 0.3 s$"):
            query(critic)
    assert len(server.bodies) == 2


def test_an_answer_that_is_not_a_chat_completion_fails(server):
    for body in ("<html>", {"choices": []}, "[1]", ""):
        server.respond = lambda _, body=body: (200, body)
        with critic_at(server.url) as critic, pytest.raises(EngineError, match=r"found '.*' where a chat completion"):
            query(critic)


def test_an_unreachable_critic_stops_the_run_after_the_received_answers(server):
    server.respond = in_turn(chat("first"), refused(502, "offline"))
    with critic_at(server.url, concurrency=1) as critic:
        answers = query_until_failure(critic, 3, r"no answer in \d+ s .*: 502 Bad Gateway: offline")
    assert [completion.text for completion in answers] == ["first"]
    assert len(server.bodies) == 2, "the run stops without a third request"


def test_with_outcome_credit_an_unreachable_server_gets_no_request_for_a_minute(server):
    server.respond = lambda body: refused(503)
    with critic_at(server.url, on_failure="outcome", concurrency=1) as critic:
        answers = query(critic, *(request(str(i)) for i in range(FAILURES + 3)))
        assert len(server.bodies) == FAILURES
        for answer in answers.values():
            assert (answer.text, answer.finished) == ("", False)
            assert re.match(rf"critic at {server.url}: no answer in 0 s .*: 503 Service Unavailable", answer.error)
        critic._breaker._closed_until = 0.0  # a minute later
        assert query(critic, *(request(str(i)) for i in range(2)))["1"].error
        assert len(server.bodies) == FAILURES + 1, "one more failure starts the next pause"
        critic._breaker._closed_until = 0.0  # a minute later
        server.respond = in_turn(chat(), refused(503), chat())
        answers = query(critic, *(request(str(i)) for i in range(3)))
        assert [bool(answer.error) for answer in answers.values()] == [False, True, False]


def test_one_failed_request_does_not_mean_an_unreachable_server(server):
    """After a failure between two answers, the next request is still sent."""
    server.respond = lambda body: refused(500) if body["messages"][0]["content"] == "bad" else chat()
    with critic_at(server.url, on_failure="outcome", concurrency=1) as critic:
        answers = query(critic, *(request(f"{i}", ["bad", "good"][i % 2]) for i in range(4 * FAILURES)))
    assert [bool(answer.error) for answer in answers.values()] == [True, False] * 2 * FAILURES


def test_the_pauses_in_the_settings_rule_are_the_clients():
    assert (FIRST_PAUSE_S, LONGEST_PAUSE_S) == (INITIAL_RETRY_DELAY, MAX_RETRY_DELAY)
    assert MAX_RETRY_AFTER_DELAY == 120, "the limit in the help of endpoint.retries"


# ---- permanent failures ----


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("on_failure", ["stop", "outcome"])
def test_a_refusal_stops_at_once_with_the_servers_message_and_without_the_key(server, code, on_failure, monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", "sk-secret")
    server.respond = lambda body: refused(code, "seed is not\nsupported for sk-secret")
    line = f"{server.url} refuses a request: {code} .*seed is not supported"
    with (
        critic_at(server.url, api_key_env="CRITIC_KEY", on_failure=on_failure) as critic,
        pytest.raises(EngineError, match=line) as error,
    ):
        query(critic)
    assert server.keys == ["Bearer sk-secret"], "one request"
    assert "secret" not in str(error.value)
    assert ("(key: CRITIC_KEY, set)" in str(error.value)) == (code == 401)


def test_a_refused_request_fails_alone_if_others_are_answered(server):
    filtered = refused(400, "content filter")
    server.respond = in_turn(chat(), filtered, chat())
    with critic_at(server.url, concurrency=1, on_failure="outcome") as critic:
        first, second, third = query(critic, request("a"), request("b"), request("c")).values()
        assert (first.error, third.error) == (None, None)
        assert second.error == f"critic at {server.url} refuses a request: 400 Bad Request: content filter"
        server.respond = lambda body: refused(401)
        with pytest.raises(EngineError, match="401"):
            query(critic)
    server.respond = in_turn(chat(), filtered)
    with critic_at(server.url, concurrency=1) as critic:
        assert len(query_until_failure(critic, 2, "400 Bad Request: content filter")) == 1


@pytest.mark.parametrize("message", ["content filter", "This model's maximum context length is 256 tokens."])
def test_the_first_refusal_waits_for_running_requests(server, message):
    """The answer comes after the refusal and shows that the server does not refuse every request."""
    both = threading.Barrier(2, timeout=30)

    def respond(body):
        both.wait()
        bad = body["messages"][0]["content"] == "bad"
        if not bad:
            time.sleep(0.1)
        return refused(400, message) if bad else chat()

    server.respond = respond
    with critic_at(server.url, on_failure="outcome") as critic:
        answers = query(critic, request("bad", "bad"), request("good", "good"))
    assert (answers["bad"].text, answers["bad"].finished, answers["good"].error) == ("", False, None)


def test_the_error_of_a_redirect_names_its_target(server):
    server.respond = lambda body: (307, "", {"location": "/login"})
    with critic_at(server.url) as critic, pytest.raises(EngineError, match=r"307 Temporary Redirect: to /login$"):
        query(critic)


def test_a_first_prompt_that_is_too_long_for_the_server_stops_the_run(server):
    """With critic.max_tokens above the server's context, every critique would count as truncated."""
    line = "'max_tokens' is too large: 4096. This model's maximum context length is 256 tokens."
    server.respond = lambda body: refused(400, line)
    with critic_at(server.url, on_failure="outcome") as critic, pytest.raises(EngineError, match=re.escape(line)):
        query(critic, *(request(str(i)) for i in range(3)))


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_later_prompt_that_is_too_long_for_the_server_is_a_truncated_answer(server, name):
    server.respond = in_turn(chat(), refused(*TOO_LONG[name]))
    with critic_at(server.url, concurrency=1) as critic:
        short, long = query(critic, request("a"), request("b")).values()
    assert (long.finished, long.text, long.error) == (False, "", None)
    assert short.finished
