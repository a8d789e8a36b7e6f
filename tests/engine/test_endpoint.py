"""The critic on a server: requests, answers, the budget, the start, and the command that scores a critic there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from scripted_server import (
    TOO_LONG,
    Scripted,
    chat,
    critic_at,
    free_port,
    in_turn,
    query,
    query_until_failure,
    refused,
    request,
)

from capo_fast.config import load_config
from capo_fast.config.schema import EndpointConfig
from capo_fast.critic_eval import main as critic_eval
from capo_fast.engine.base import EngineError
from capo_fast.engine.endpoint import EndpointCritic
from capo_fast.errors import ConfigError
from capo_fast.loaders import critic_client


@pytest.fixture
def server():
    scripted = Scripted()
    yield scripted
    scripted.stop()


# ---- requests and answers ----


def test_a_request_is_sent_completely(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with critic_at(server.url) as critic:
        query(critic, request("a"), request("b", top_k=7, regex="Judgment: (Yes|No)"))
    plain = next(body for body in server.bodies if "top_k" not in body)
    assert plain == {
        "model": "critic",
        "messages": [{"role": "user", "content": "1+1\n<step_0>1+1=2</step_0>"}],
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 30, "seed": 5,
    }  # fmt: skip
    [other] = [body for body in server.bodies if body is not plain]
    assert server.keys == [None, None]
    assert (other["top_k"], other["structured_outputs"]) == (7, {"regex": "Judgment: (Yes|No)"})


@pytest.mark.parametrize("key", ["sk-mine", ""])
def test_no_other_setting_for_openai_in_the_environment_is_sent(server, monkeypatch, key):
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "for-openai")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: Bearer for-openai")
    monkeypatch.setenv("CRITIC_KEY", key)
    with critic_at(server.url, api_key_env="CRITIC_KEY") as critic:
        query(critic)
    assert len(server.headers) == 2, "the list of models, and a completion"
    assert "for-openai" not in str(server.headers)
    assert server.keys == [f"Bearer {key}" if key else None]


def test_an_answer_has_its_content_and_its_cost(server):
    server.respond = in_turn(chat("A", reasoning_content="hm"), chat(None, reasoning="hm"), chat("Judg", "length"))
    with critic_at(server.url, concurrency=1) as critic:
        first, second, third = query(critic, request("a"), request("b"), request("c")).values()
        assert critic.spent_tokens == 45
    assert (first.text, first.finished) == ("A", True)
    assert (first.prompt_tokens, first.answer_tokens, first.cached_tokens) == (10, 5, 4)
    assert (second.text, second.finished) == ("", True)
    assert (third.text, third.finished) == ("Judg", False)


def test_no_more_requests_run_at_once_than_allowed(server):
    """Three at once, never four: each answer waits until three requests have arrived."""
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
        assert len(query(critic, *(request(str(i)) for i in range(12)))) == 12
    assert most[0] == 3


def test_closing_ends_every_request(server, recwarn):
    """No running request, no request between two tries and no waiting request remains."""
    release, hanging, failed = threading.Event(), threading.Event(), threading.Event()

    def respond(body):
        if body["messages"][0]["content"] == "fails":
            failed.set()
            return *refused(500), {"Retry-After": "100"}
        hanging.set()
        release.wait(30)
        return chat()

    server.respond = respond
    critic = EndpointCritic(EndpointConfig(url=server.url, concurrency=2))
    for i, message in enumerate(["fails", "hangs", "waits"]):
        critic.add(request(str(i), message))
    assert hanging.wait(30) and failed.wait(30)
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
    "a count beyond reason": (chat(prompt=10**30), "Judgment: Yes", True, 0),
    "parts": (chat(PARTS), "Judgment: Yes", True, 15),
    "withheld": ((200, WITHHELD), "", False, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_answers_of_different_servers_are_read(server, name):
    server.respond, text, finished, tokens = (lambda body: SHAPES[name][0]), *SHAPES[name][1:]
    with critic_at(server.url) as critic:
        answer = query(critic)["c"]
        assert (answer.text, answer.finished, critic.spent_tokens) == (text, finished, tokens)


# ---- the budget ----


def test_a_spent_budget_stops_the_run(server):
    with critic_at(server.url, 30, budget_tokens=60, concurrency=1) as critic:
        answers = query_until_failure(critic, 3, r"endpoint\.budget_tokens: all 60 tokens are spent")
        assert (len(answers), critic.spent_tokens) == (2, 30)


def test_a_run_continues_without_the_critic_on_a_spent_budget(server):
    with critic_at(server.url, 30, budget_tokens=60, concurrency=1, on_failure="outcome") as critic:
        answers = query(critic, *(request(str(i)) for i in range(4)))
        assert "tokens are spent" in query(critic)["c"].error
    assert [answer.error is None for answer in answers.values()] == [True, True, False, False]
    assert len(server.bodies) == 2


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 10}, {"completion_tokens": 5}])
@pytest.mark.parametrize(("left", "setting"), [(30, "endpoint.budget_tokens"), (None, "critic.gate.tokens")])
def test_a_budget_needs_a_server_that_counts_tokens(server, usage, left, setting):
    server.respond = lambda body: (200, chat()[1] | {"usage": usage})
    match = f"does not report token counts, which {setting} needs"
    with critic_at(server.url, left, "critic.gate.tokens") as critic, pytest.raises(EngineError, match=match):
        query(critic)


def test_a_gate_s_budget_needs_token_counts_in_training_alone(server, tmp_path):
    """An evaluation reads all solutions, whatever the gate in a run's file."""
    server.respond = lambda body: (200, chat()[1] | {"usage": None})
    file = tmp_path / "gate.yaml"
    file.write_text("critic: {votes: 1, gate: {tokens: 100000}}")
    files = ["--config", "configs/tiny.yaml", "--config", str(file)]
    config = load_config([*files, "--critic.mode", "endpoint", "--endpoint.url", server.url])
    with closing(critic_client(config, 0, 1)) as critic, pytest.raises(EngineError, match=r"gate\.tokens needs"):
        query(critic)
    assert critic_eval(["--critic", server.url, *files, "--data", "tiny", "--limit", "1", "--out", str(tmp_path)]) == 0


def test_an_empty_answer_may_cost_no_tokens(server):
    server.respond = lambda body: chat("", answer=0)
    with critic_at(server.url, 30) as critic:
        assert query(critic)["c"].error is None


def test_one_answer_without_token_counts_is_a_failed_request(server):
    server.respond = in_turn(chat(), chat(prompt=None), chat())
    with critic_at(server.url, 90, budget_tokens=90, concurrency=1, on_failure="outcome") as critic:
        answers = query(critic, *(request(str(i)) for i in range(3))).values()
    assert ["does not report token counts" in (answer.error or "") for answer in answers] == [False, True, False]


def test_an_unreadable_answer_counts_in_the_budget(server):
    server.respond = lambda body: (200, chat()[1] | {"choices": []})
    with critic_at(server.url, 90, budget_tokens=90, on_failure="outcome") as critic:
        assert query(critic)["c"].error
        assert critic.spent_tokens == 15


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
def test_a_failed_start_names_the_cause(server, name):
    server.models, model, kind, line = STARTS[name]
    with pytest.raises(kind) as error:
        EndpointCritic(EndpointConfig(url=server.url, model=model, api_key_env="NO_SUCH_KEY"))
    assert line.replace("URL", server.url) in str(error.value)
    assert "endpoint" not in {thread.name for thread in threading.enumerate()}


def test_an_address_without_v1_is_hinted_at(server):
    for answer in (refused(404, "Not Found"), (200, "<html>")):
        server.models = answer
        with pytest.raises(EngineError, match=r"; is /v1 missing at the end of the address\?$"):
            EndpointCritic(EndpointConfig(url=server.url.removesuffix("/v1")))


def test_a_servers_error_message_becomes_one_short_line_without_the_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.models = models("sk-secret\n", *(f"model-{i}" for i in range(500)))
    with pytest.raises(ConfigError) as error:
        EndpointCritic(EndpointConfig(url=server.url))
    assert re.search(r"offers: \*\*\* , model-0, model-1, [^\n]{200,300}$", str(error.value))


def test_an_unreachable_server_is_named():
    url = f"http://127.0.0.1:{free_port()}/v1/"
    with pytest.raises(EngineError, match=f"critic at {url} can't be reached: .*refused|attempts failed"):
        EndpointCritic(EndpointConfig(url=url))


def test_a_key_that_is_invalid_in_a_header_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-se\ncret")
    with pytest.raises(ConfigError, match=r"endpoint\.api_key_env: the key in OPENAI_API_KEY contains") as error:
        EndpointCritic(EndpointConfig(url=server.url))
    assert "cret" not in str(error.value)


def test_no_proxy_is_used_for_this_machine(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with critic_at(server.url + "/", model="critic") as critic:
        assert query(critic)["c"].error is None


def test_only_an_endpoint_needs_its_package(tmp_path):
    """Without the package a run with an endpoint fails before it creates its folder and loads its model."""
    script = """
import sys
sys.modules["openai"] = None  # as if not installed
import capo_fast.build, capo_fast.check, capo_fast.critic_eval, capo_fast.train
print("imported")
capo_fast.build.load_learner = None
url, run = sys.argv[1:]
capo_fast.check.main(["--critic.mode", "endpoint", "--endpoint.url", url])
assert capo_fast.critic_eval.main(["--critic", url, "--data", "tiny", "--out", run]) == 1
assert capo_fast.train.main(["--critic.mode", "endpoint", "--endpoint.url", url, "--run.dir", run]) == 1
"""
    command = [sys.executable, "-c", script, "http://127.0.0.1:1/v1", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    line = "a critic on a server needs openai: pip install '.[endpoint]'\n"
    assert done.stdout.startswith("imported\n")
    assert done.stdout.endswith(f"FAILED  critic         {line}")
    assert done.stderr.endswith(f"capo_fast: error: {line}" * 2)
    assert done.returncode == 0
    assert not (tmp_path / "run").exists()


# ---- scoring a critic at a server ----


def test_scoring_a_critic_at_a_server_resumes_after_an_interruption(server, tmp_path, capsys):
    def flags(budget):
        settings = {"--data": "tiny", "--limit": "4", "--critic.votes": "2", "--endpoint.retries": "0",
                    "--endpoint.concurrency": "1", "--endpoint.budget_tokens": budget}  # fmt: skip
        words = [word for pair in settings.items() for word in pair]
        return ["--critic", server.url, "--config", "configs/tiny.yaml", "--out", str(tmp_path), *words]

    server.respond = in_turn(chat(), chat(), refused(*TOO_LONG["vllm"]), refused(500, "out of memory"))
    assert critic_eval(flags("135")) == 1
    output = capsys.readouterr().err
    assert re.search(rf"capo_fast: error: critic at {server.url}: no answer in \d+ s .*: 500 ", output)
    server.respond = lambda body: chat()
    assert critic_eval(flags("135")) == 1, "2 + 7 answers of 15 tokens"
    assert "endpoint.budget_tokens: all 135 tokens are spent" in capsys.readouterr().err
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
    output = capsys.readouterr().err
    assert "endpoint.url: found a user or a password" in output
    assert "secret" not in output
