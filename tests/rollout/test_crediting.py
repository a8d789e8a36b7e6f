"""Queries of estimators: requests, seeds, verdicts, costs, and whole runs with each kind of credit."""

from __future__ import annotations

import gzip
import json

import pytest
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, scripted_config, tokenizer

from capo_fast.credit.estimate import load_estimator
from capo_fast.credit.groups import Continuation, CreditError, Suffix
from capo_fast.records import Completion, Prompt
from capo_fast.rollout.crediting import Crediting, QueryAnswerer
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.train import run
from capo_fast.verify import VerifierPool


class RecordingEngine(ScriptedEngine):
    """Records its requests. Scored requests get a log-prob of -1 per token."""

    def __init__(self):
        super().__init__(self.write, score_with(MODEL))
        self.requests = []

    def write(self, request):
        self.requests.append(request)
        if request.scored:
            tokens = request.prompt_ids[-request.scored :]
            return Completion(
                request.id, tokens, (-1.0,) * len(tokens), "", True, len(request.prompt_ids) - len(tokens)
            )
        return continued(request) if request.id.startswith("credit") else answer(request)


def continued(request):
    """The right answer for even seeds, else a wrong one."""
    text = f"A:{request.seed % 2}"
    ids = (*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id)
    return Completion(request.id, ids, (-0.5,) * len(ids), text, True, len(request.prompt_ids))


def prompt(name="p"):
    ids = tokenizer().encode("3+4*2\n", add_special_tokens=False)
    return Prompt(name, "3+4*2", "0", None, tuple(ids))


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=1, fn="reward_functions:tiny_answer") as pool:
        yield Rewards((pool,))


def make_answerer(pool, step=3, **settings):
    config = scripted_config("--rollout.max_tokens", "12", *(w for pair in settings.items() for w in pair))
    engine = RecordingEngine()
    builder = RequestBuilder(tokenizer(), "", config)
    return QueryAnswerer(
        Crediting(config, load_estimator("credit_functions:rising"), engine, pool, builder), step
    ), engine


def test_equal_queries_are_sent_once_and_overlong_ones_never(pool):
    answerer, engine = make_answerer(pool)
    suffix, long = Suffix((1, 2), (3, 4)), Suffix((1,) * 250, (2,) * 6)
    whole = Continuation(prompt(), (1,) * 12, 0)
    assert answerer([suffix, long, suffix, whole]) == [(-1.0, -1.0), None, (-1.0, -1.0), None]
    assert [(each.prompt_ids, each.scored, each.max_tokens) for each in engine.requests] == [((1, 2, 3, 4), 2, 1)]
    cost = answerer.cost
    assert (cost.requests, cost.tokens, cost.shared, cost.without_room) == (1, 4, 1, 2)


def test_continuations_extend_their_prefix_and_are_verified(pool):
    answerer, engine = make_answerer(pool)
    prefix = tuple(tokenizer().encode("3+4=7\n\n", add_special_tokens=False))
    queries = [Continuation(prompt(), prefix, k) for k in range(6)]
    verdicts = answerer(queries)
    requests = engine.requests
    assert {each.prompt_ids for each in requests} == {prompt().token_ids + prefix}
    assert {each.max_tokens for each in requests} == {12 - len(prefix)}
    assert verdicts == [float(each.seed % 2 == 0) for each in requests] and len(set(verdicts)) == 2
    assert answerer.cost.tokens == sum(len(each.prompt_ids) + 3 for each in requests)
    answerer, engine = make_answerer(pool)
    assert answerer(queries[::-1]) == verdicts[::-1], "a seed depends on the query, not on its position"
    answerer, engine = make_answerer(pool, step=4)
    answerer(queries)
    assert {each.seed for each in engine.requests}.isdisjoint(each.seed for each in requests)


def test_answer_probability_queries_the_policy_once_per_step_end(tmp_path):
    engine, folder = RecordingEngine(), tmp_path / "run"
    words = ["--credit.process", "answer-probability", "--credit.schedule", "linear", "--credit.process_start", "0.5"]
    run(scripted_config(*words, "--train.steps", "2", "--eval.path", "none", "--run.dir", str(folder)), engine)
    assert not any(request.id.startswith("critique") for request in engine.requests)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = [request for request in engine.requests if request.scored]
    assert sum(line["credit/requests"] for line in lines) == len(scored) > 32
    assert sum(line["credit/tokens"] for line in lines) == sum(len(request.prompt_ids) for request in scored)
    assert [line["credit/process_weight"] for line in lines] == [0.5, 1.0]
    assert all("time/credit" in line for line in lines)
    rows = read_rows(folder, 2)
    inner = [(row["advantages"], row["outcome"]) for row in rows if len(row["steps"]) > 1]
    # Every answer has probability exp(-1) here: all steps but the last are equal, and the last gets the rest.
    assert all(len({round(a, 4) for a in advantages[:-1]}) == 1 for advantages, _ in inner)
    assert all((advantages[-1] > advantages[0]) == (outcome == 1) for advantages, outcome in inner)


def test_a_run_with_token_credit_writes_its_advantages(tmp_path):
    words = ["--algorithm", "grpo", "--credit.fn", "credit_functions:rising", "--train.dynamic_sampling", "true"]
    run(
        scripted_config(*words, "--train.steps", "1", "--eval.path", "none", "--run.dir", str(tmp_path / "run")),
        RecordingEngine(),
    )
    for row in read_rows(tmp_path / "run", 1):
        length = len(row["token_ids"])
        assert row["token_advantages"] == [0.0] * (length - 2) + [0.5, -0.5]
        assert {abs(each) for each in row["advantages"]} <= {0.0, 0.5} and any(row["advantages"])


def test_credit_of_two_kinds_in_one_step_is_refused(tmp_path):
    """For example if a function returns different kinds on different ranks or in different rounds."""
    words = ["--credit.fn", "credit_functions:of_either_kind", "--train.dynamic_sampling", "true"]
    config = scripted_config(*words, "--algorithm", "grpo", "--eval.path", "none", "--run.dir", str(tmp_path / "run"))
    with pytest.raises(CreditError, match=r"of_either_kind: found TokenCredit of group . and StepCredit of"):
        run(config, RecordingEngine())


def read_rows(folder, step):
    with gzip.open(folder / "rollouts" / f"{step:06d}.jsonl.gz") as file:
        return [json.loads(line) for line in file]
