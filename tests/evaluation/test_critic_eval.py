"""`capo_fast.critic_eval`: scores by hand and by theory, and the command on scripted critiques."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_engine import ScriptedEngine
from scripted_world import answer_steps, scripted_engine

import capo_fast.critic_eval as critic_eval
from capo_fast.config.critic import CriticConfig
from capo_fast.config.load import build_kind, dump_config
from capo_fast.config.sft import SftConfig
from capo_fast.critic_eval import job_of, main, run
from capo_fast.errors import ConfigError
from capo_fast.evaluation.compare import compare, comparison_table, read_results
from capo_fast.evaluation.critic_table import results_table
from capo_fast.evaluation.critics import Judged, score_set, score_voting, subset_mean
from capo_fast.evaluation.labelled import DATA, Solution, load_solutions
from capo_fast.evaluation.store import Answer
from capo_fast.records import Completion, Critique
from capo_fast.rollout.critiquing import joined

SHARED = Path(__file__).parents[3] / "shared" / "data"
ABSTAINED = Critique(True, frozenset(), 0)
ANSWER = Answer("a", "", True, prompt_tokens=10, tokens=5, seconds=0.5)


def marks(*steps):
    return Critique(False, frozenset(steps), 0)


def solution(wrong, steps=4, subset="all", id_="s"):
    return Solution(id_, "?", ("x",) * steps, min(wrong, default=-1), frozenset(wrong), subset)


def judged(wrong, *votes, greedy=ABSTAINED, **rest):
    return Judged(solution(wrong, **rest), votes, greedy, (ANSWER,) * (len(votes) + 1))


FOUR = [
    judged({1, 2}, marks(1), marks(1, 2), marks(0, 1)),  # intersection {1}, majority {1}, union {0, 1, 2}
    judged({3}, marks(), marks(3), ABSTAINED),  # intersection {}, majority {3}, union {3}
    judged((), marks(), marks(), marks(2)),  # intersection {}, majority {}, union {2}
    judged((), ABSTAINED, ABSTAINED, ABSTAINED),
]


@pytest.mark.parametrize(
    ("voting", "on_wrong", "on_right", "precision", "recall"),
    [
        ("intersection", 1 / 2, 1 / 2, 1.0, 1 / 3),
        ("majority", 1.0, 1 / 2, 1.0, 2 / 3),
        ("union", 1 / 2, 0.0, 3 / 5, 1.0),
    ],
)
def test_three_votes_by_hand(voting, on_wrong, on_right, precision, recall):
    row = score_voting(FOUR, voting, 3)
    assert row["accuracy_on_wrong"]["value"] == pytest.approx(on_wrong)
    assert row["accuracy_on_right"]["value"] == pytest.approx(on_right)
    assert row["f1"]["value"] == pytest.approx(2 * on_wrong * on_right / (on_wrong + on_right))
    assert (row["step_precision"], row["step_recall"]) == pytest.approx((precision, recall))
    assert row["abstained"] == 0.25
    assert (row["tokens_in"], row["tokens_out"]) == (30, 15)


def test_the_average_counts_steps_by_their_votes():
    row = score_voting(FOUR, "average", 3)
    named = (1 / 3 + 1 + 1 / 3) + 1 / 2 + 1 / 3
    assert row["step_precision"] == pytest.approx((1 + 1 / 3 + 1 / 2) / named)
    assert row["step_recall"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert row["f1"] == score_voting(FOUR, "majority", 3)["f1"]


def test_fewer_votes_are_the_first_votes():
    cut = [replace(j, sampled=j.sampled[:2], answers=j.answers[:2]) for j in FOUR]
    assert score_voting(FOUR, "union", 2) == score_voting(cut, "union", 2)
    rows = score_set(FOUR, "majority")["votings"]
    assert [(row["voting"], row["votes"]) for row in rows[:4]] == [
        ("greedy", 1), ("any", 1), ("intersection", 2), ("intersection", 3)
    ]  # fmt: skip
    assert len(rows) == 2 + 4 * 2
    assert rows[0]["abstained"] == 1.0 and rows[0]["tokens_in"] == 10


def test_a_critic_that_accepts_all_has_an_f1_of_0():
    yes = [replace(j, sampled=(marks(),) * 3, greedy=marks()) for j in FOUR]
    row = score_voting(yes, "majority", 3)
    assert (row["f1"]["value"], row["accuracy_on_wrong"]["value"], row["accuracy_on_right"]["value"]) == (0.0, 0.0, 1.0)
    assert (row["step_precision"], row["step_recall"]) == (None, 0.0)


def test_scores_that_the_labels_do_not_allow_are_none():
    wrong_only = [judged({0}, marks(0)), judged({1}, marks(0))]
    row = score_voting(wrong_only, "any", 1)
    assert row["f1"] is None and row["accuracy_on_right"]["value"] is None
    assert row["accuracy_on_wrong"]["value"] == 0.5
    first_only = [replace(j, solution=replace(j.solution, wrong_steps=None)) for j in FOUR]
    row = score_voting(first_only, "union", 3)
    assert row["f1"] is not None and row["step_precision"] is row["step_recall"] is None


def test_subsets_and_separately_scored_solutions():
    sets = [
        judged({0}, marks(0), subset="a", id_="1"), judged((), marks(), subset="a", id_="2"),
        judged({0}, marks(1), subset="b", id_="3"), judged((), marks(), subset="b", id_="4"),
    ]  # fmt: skip
    entry = score_set(sets, "any")
    assert {name: row["f1"]["value"] for name, row in entry["subsets"].items()} == {"a": 1.0, "b": 0.0}
    assert subset_mean(entry) == 0.5
    assert entry["metrics"]["any@1"]["value"] == 0.75
    more = score_set([*sets, judged({0}, marks(1), subset="redundancy", id_="5")], "any")
    assert more["votings"] == entry["votings"]
    assert (more["problems"], more["scored_apart"], set(more["subsets"])) == (4, 1, {"a", "b", "redundancy"})


def test_agreement_of_votes():
    assert score_set([judged({0}, marks(0), marks(0)), judged((), marks(), marks(), id_="t")], "any")["agreement"] == {
        "step": 1.0, "step_kappa": 1.0, "solution": 1.0, "solution_kappa": 1.0
    }  # fmt: skip
    split = score_set([judged({0}, marks(0), marks(), ABSTAINED, steps=2)], "any")["agreement"]
    assert (split["step"], split["solution"], split["solution_kappa"]) == (0.5, 0.0, -1.0)


def by_step(wrong, *votes):
    """A solution of two steps with separate critiques per step. In votes, True means wrong and None abstains."""
    by_vote = {True: marks(0), False: marks(), None: ABSTAINED}
    return judged(wrong, *joined([[by_vote[vote[step]] for vote in votes] for step in (0, 1)], len(votes)), steps=2)


def test_single_steps_are_voted_on_one_by_one_as_in_training():
    solution_of_two = by_step({0, 1}, (True, None), (None, True))
    row = score_voting([solution_of_two], "intersection", 2)
    assert (solution_of_two.held("intersection", 2), row["step_recall"]) == ([1.0, 1.0], 1.0)


def test_a_step_without_a_verdict_is_an_abstention_unless_an_earlier_one_is_wrong():
    found, unknown = by_step({0}, (True, None)), by_step((), (False, None))
    assert (found.first_wrong("any", 1), unknown.first_wrong("any", 1)) == (0, None)
    row = score_voting([found, unknown], "any", 1)
    assert (row["abstained"], row["accuracy_on_wrong"]["value"], row["accuracy_on_right"]["value"]) == (0.5, 1.0, 0.0)
    assert (row["step_precision"], row["step_recall"]) == (1.0, 1.0)


def test_the_table_of_critics_that_agree_on_a_step_and_read_no_whole_solution():
    entry = score_set([by_step((), (False, None), (False, None))], "union")
    assert (entry["agreement"]["step"], entry["agreement"]["solution"]) == (1.0, None)
    settings = {"model": "m", "seed": 0, "critic.temperature": 1.0, "critic.top_p": 1.0, "critic.reads": "step"}
    table = results_table({"settings": settings | {"critic.step.max_tokens": 9}, "benchmarks": {"a": entry}})
    assert "agree on 1.000 of steps (Fleiss' kappa –) and on – of verdicts (kappa –)" in table


# ---- the command ----


def make_job(folder, *arguments):
    return job_of(["--out", str(folder), *arguments])


def test_the_true_critic_of_the_tiny_world_is_perfect(tmp_path):
    results = run(make_job(tmp_path / "a", "--limit", "40", "--critic.votes", "2"), scripted_engine())
    entry = results["benchmarks"]["tiny"]
    assert len(entry["votings"]) == 6
    for row in entry["votings"]:
        assert row["f1"]["value"] == row["step_precision"] == row["step_recall"] == 1.0
        assert row["accuracy_on_wrong"]["problems"] > 20 and row["accuracy_on_right"]["problems"] > 5
    counts = entry["counts"]
    assert (counts["critiques"], counts["abstained"], counts["without_room"]) == (120, 0, 0)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["benchmarks"] == results["benchmarks"]
    assert "## tiny: 40 solutions" in (tmp_path / "a" / "results.md").read_text()


def test_the_tiny_critic_of_steps_is_a_separate_model(tmp_path):
    models = [Path(make_job(tmp_path, *more).model).name for more in ((), ("--critic.reads", "step"))]
    assert models == ["model", "critic"]


def test_a_critic_of_steps_is_scored_on_whole_solutions(tmp_path):
    arguments = ("--limit", "20", "--critic.votes", "1", "--critic.reads", "step")
    results = run(make_job(tmp_path, *arguments), ScriptedEngine(answer_steps))
    entry = results["benchmarks"]["tiny"]
    assert ", all critiques read; 0 indices out of range; " in (tmp_path / "results.md").read_text()
    assert {row["step_recall"] for row in entry["votings"]} == {row["f1"]["value"] for row in entry["votings"]} == {1.0}
    assert (entry["counts"]["critiques"], entry["counts"]["without_room"]) == (40, 0)
    steps = [len(each.steps) for each in load_solutions(["tiny"], None, 20, 0)["tiny"]]
    assert entry["counts"]["requests"] == 2 * sum(steps)
    assert entry["counts"]["tokens_out"] == 2 * 2 * sum(steps), "two critiques of two tokens per step"


class YesCritic(ScriptedEngine):
    def __init__(self):
        super().__init__(self.respond)
        self.requests = []

    def respond(self, request):
        self.requests.append(request)
        return Completion(request.id, (1, 2), (0.0, 0.0), "Judgment: Yes", True)


def test_every_critique_is_requested_once_greedy_and_sampled(tmp_path):
    job = make_job(tmp_path / "a", "--limit", "5", "--critic.votes", "3", "--critic.temperature", "0.5")
    results = run(job, engine := YesCritic())
    assert [r.temperature for r in engine.requests] == [0.5, 0.5, 0.5, 0.0] * 5
    assert len({r.seed for r in engine.requests}) == 20
    row = results["benchmarks"]["tiny"]["votings"][-1]
    assert (row["f1"]["value"], row["accuracy_on_right"]["value"]) == (0.0, 1.0)
    assert run(job, again := YesCritic())["benchmarks"] == results["benchmarks"]
    assert again.requests == []
    with pytest.raises(ConfigError, match=r"critic\.votes: 2,"):
        run(make_job(tmp_path / "a", "--limit", "5", "--critic.votes", "2", "--critic.temperature", "0.5"), YesCritic())
    template = tmp_path / "template.txt"
    template.write_text("{{ problem }}{% for step in steps %}{{ step.index }} {{ step.text }}{% endfor %}")
    with pytest.raises(ConfigError, match="prompt: "):
        flags = ["--critic.votes", "3", "--critic.temperature", "0.5", "--critic.prompt", str(template)]
        run(make_job(tmp_path / "a", "--limit", "5", *flags), YesCritic())


def test_a_greedy_critic_gives_no_votes(tmp_path):
    arguments = ("--limit", "3", "--critic.votes", "4", "--critic.voting", "greedy")
    entry = run(make_job(tmp_path, *arguments), engine := YesCritic())["benchmarks"]["tiny"]
    assert [r.temperature for r in engine.requests] == [0.0] * 3
    assert [(row["voting"], row["votes"]) for row in entry["votings"]] == [("greedy", 1)]
    assert "| greedy (as configured) |" in (tmp_path / "results.md").read_text()


class Rambling(ScriptedEngine):
    TEXTS = ("Judgment: No", "I think it", "Judgment: No <incorrect_steps>9</incorrect_steps>", "so", "Judgment: Yes ")

    def __init__(self):
        super().__init__(self.respond)

    def respond(self, request):
        place = int(request.id.split("-")[1])
        return Completion(request.id, (1, 2), (0.0, 0.0), self.TEXTS[place], place != 3)


def test_abstentions_are_counted_by_reason(tmp_path):
    run(make_job(tmp_path, "--limit", "5", "--critic.voting", "greedy"), Rambling())
    reasons = "1 No without a list, 1 without a verdict, 1 only indices out of range, 1 cut before the verdict"
    page = (tmp_path / "results.md").read_text()
    counts = f"5 requests, 1 cut at critic.max_tokens (128), 4 critiques not read ({reasons})"
    assert f"{counts}; 1 indices out of range;" in page


def test_critics_of_different_settings_are_compared_by_the_first_error(tmp_path):
    run(make_job(tmp_path / "a", "--limit", "10", "--critic.voting", "greedy"), YesCritic())
    run(make_job(tmp_path / "b", "--limit", "10", "--critic.votes", "3"), scripted_engine())
    found = compare(*map(read_results, (tmp_path / "a", tmp_path / "b")))
    names = ["accuracy by first error, greedy", "accuracy by first error, as configured"]
    names += ["F1, greedy", "F1, as configured"]
    assert [(row["metric"], row["b"], row["pairs"]) for row in found["rows"]] == [(name, 1.0, 10) for name in names]
    assert found["rows"][1]["a"] == found["rows"][0]["a"] < 1
    assert found["rows"][2]["a"] == 0.0, "it finds no wrong step"
    page = comparison_table(found)
    assert "critic.votes: 1 in A, 3 in B\ncritic.voting: greedy in A, " in page and "F1, greedy" in page


def test_equal_votes_are_refused_unless_none_is_sampled(tmp_path):
    given = ("--critic.temperature", "0", "--critic.votes", "3")
    with pytest.raises(ConfigError, match=r"critic\.votes: found 3, wanted 1 with critic\.temperature: 0"):
        make_job(tmp_path / "a", *given)
    assert make_job(tmp_path / "a", *given, "--critic.voting", "greedy").config.critic.votes == 3


def test_settings_of_a_start_without_answers_may_change(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "settings.json").write_text('{"critic.votes": 7}')
    assert run(make_job(tmp_path / "a", "--limit", "4", "--critic.votes", "2"), scripted_engine())
    with pytest.raises(ConfigError, match=r"critic\.votes"):
        run(make_job(tmp_path / "a", "--limit", "4", "--critic.votes", "3"), scripted_engine())


def test_a_served_critic_writes_its_log_where_all_ranks_have_a_folder(tmp_path, monkeypatch):
    """A default --out has the time: the first rank of another host has another name, and no such folder."""
    monkeypatch.setattr(critic_eval, "load_critic_tokenizer", lambda config: None)
    monkeypatch.setattr(critic_eval, "critic_client", lambda *arguments: SimpleNamespace(pause_s=0.0))
    logs = []
    server = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(critic_eval, "serve_critic", lambda config, folder, in_turns: logs.append(folder) or server)
    job = make_job(tmp_path / "of-rank-2", "--critic.mode", "server")
    store = SimpleNamespace(folder=tmp_path / "of-rank-0", tokens=lambda: 0)
    monkeypatch.setattr(critic_eval.dist, "get_world_size", lambda: 4)
    critic_eval.start_critic(job, store)
    assert logs == [store.folder]


def test_a_fine_tuned_run_is_evaluated_with_the_prompt_of_its_training(tmp_path):
    for task in ("critic", "chat"):
        folder, own = tmp_path / task, {"data.critic_prompt": "pkg://capo_fast.credit/prompts/tiny.txt"}
        (folder / "model").mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_config(build_kind(SftConfig, {"task": task, **own})))
    given = ("--data", "tiny", "--critic.max_tokens", "64")
    job = job_of(["--critic", str(tmp_path / "critic"), "--out", str(tmp_path / "a"), *given])
    assert (job.model, job.config.critic.prompt) == (str(tmp_path / "critic" / "model"), own["data.critic_prompt"])
    other = job_of(["--critic", str(tmp_path / "chat"), "--out", str(tmp_path / "a"), *given])
    assert (other.model, other.config.critic.prompt) == (str(tmp_path / "chat" / "model"), CriticConfig().prompt)


def test_a_solution_that_is_too_long_is_a_truncated_abstention(tmp_path):
    path = tmp_path / "s.jsonl"
    rows = [{"problem": "1+1", "steps": ["1+1=2"] * count, "first_wrong_step": -1} for count in (1, 100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = run(make_job(tmp_path / "a", "--data", str(path)), YesCritic())
    entry = results["benchmarks"]["s"]
    assert {name: entry["counts"][name] for name in ("critiques", "abstained", "truncated", "without_room")} == {
        "critiques": 4, "abstained": 2, "truncated": 2, "without_room": 2
    }  # fmt: skip
    assert entry["votings"][0]["accuracy_on_right"]["value"] == 0.5
    page = (tmp_path / "a" / "results.md").read_text()
    assert "Right solutions only: no recall, no F1." in page
    assert "2 requests, 0 cut at critic.max_tokens (128), 2 critiques not read (2 without room for the prompt);" in page
    assert "| any (as configured) |" in page and "| greedy  " in page


BAD_ROWS = {
    "steps": ({"steps": []}, "field 'steps': found [], wanted a list of texts"),
    "far": ({"first_wrong_step": 2}, "first_wrong_step: found 2, wanted -1 (none) or an index below 2"),
    "true": ({"first_wrong_step": True}, "first_wrong_step: found True"),
    "none": (
        {"first_wrong_step": None, "label": 1},
        "no first_wrong_step or wrong_steps; fields found: problem, steps, first_wrong_step (null), label",
    ),
    "empty": ({"steps": [" ", "\n"]}, "field 'steps': all 2 are empty"),
    "list": ({"wrong_steps": [0, 7]}, "wrong_steps: found [0, 7], wanted a list of indices below 2"),
    "first": ({"wrong_steps": [0, 1]}, "first_wrong_step: found 1, but the first of wrong_steps is 0"),
    "problem": ({"problem": " "}, "field 'problem' (a question) is empty"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named(name, tmp_path, capsys):
    change, line = BAD_ROWS[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"problem": "1+1", "steps": ["a", "b"], "first_wrong_step": 1} | change) + "\n")
    assert main(["--data", str(path), "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err.startswith(f"capo_fast: error: {path}, line 1: {line}")


@pytest.mark.skipif(not (SHARED / "steps_processbench.jsonl.gz").exists(), reason="no data beside the checkout")
def test_every_listed_data_set_loads():
    found = load_solutions([name for name in DATA if name != "tiny"], str(SHARED), None, 0)
    sizes = {name: len(solutions) for name, solutions in found.items()}
    assert sizes == dict(bigbench_mistake=1749, mathcheck=410, mrgsm8k=472, prmbench=5494, processbench=2720)
    all_labelled = {name for name, solutions in found.items() if solutions[0].wrong_steps is not None}
    assert all_labelled == {"prmbench"}
