"""The comparison of two runs: a changed byte of each kind of file is found and named, times are not."""

from __future__ import annotations

import gzip
import json
import shutil
from urllib.request import Request, urlopen

import pytest
import torch
from safetensors.torch import load_file, save_file

import bench.same.__main__ as same
from bench.same import runs
from bench.same.cases import TIMED, Case, served_critic
from bench.same.compare import Difference, differences
from capo_fast.policy.shards import shards_of, write_parts

METRICS = [{"step": 1, "loss/loss": 0.5, "time/learn": 1.0, "memory_gb": 2.0}, {"step": 2, "loss/loss": None}]
ROLLOUTS = [{"text": "A:7", "votes": [0.0, 1.0]}, {"text": "A:8", "votes": [1.0]}]


@pytest.fixture
def pair(tmp_path):
    """Two equal runs."""
    for side in ("base", "head"):
        make_run(tmp_path / side)
    return tmp_path / "base", tmp_path / "head"


def make_run(run):
    (run / "model").mkdir(parents=True)
    (run / "rollouts").mkdir()
    write_lines(run / "metrics.jsonl", METRICS)
    write_lines(run / "rollouts" / "000001.jsonl.gz", ROLLOUTS)
    save_file(weights(), run / "model" / "model.safetensors")
    for step in (1, 2):
        save_checkpoint(run, step, weights())


def weights():
    return {"head.weight": torch.arange(6.0).reshape(2, 3), "scale": torch.tensor(2.0, dtype=torch.bfloat16)}


def save_checkpoint(run, step, state):
    """A checkpoint of two ranks with the same tensors, so the second rank's file is empty."""
    (folder := run / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    for rank in range(2):
        write_parts(folder / f"model-{rank:05d}.safetensors", "model", shards_of(state, rank))


def write_lines(path, rows, mtime=0):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=mtime) if path.suffix == ".gz" else data)


def changed(value, *places):
    """A copy of `value`. The last of `places` replaces the item at the path of the others."""
    copy = json.loads(json.dumps(value))
    *outer, last, new = places
    inner = copy
    for place in outer:
        inner = inner[place]
    inner[last] = new
    return copy


def test_equal_runs_have_no_difference(pair):
    assert list(differences(*pair)) == []


def test_times_rates_and_memory_are_not_compared(pair):
    timed = {"time/learn": 9.0, "cpu/learn": 8.0, "memory_gb": 7.0, "tokens_per_s": 6.0, "engine/busy_s": 5.0}
    write_lines(pair[1] / "metrics.jsonl", [METRICS[0] | timed, METRICS[1]])
    assert list(differences(*pair, TIMED)) == []
    assert {found.key for found in differences(*pair)} == set(timed)


def test_a_changed_metric_is_named(pair):
    write_lines(pair[1] / "metrics.jsonl", changed(METRICS, 0, "loss/loss", 0.5000000000000001))
    found = Difference("metrics.jsonl", 1, "loss/loss", "0.5", "0.5000000000000001")
    assert list(differences(*pair, TIMED)) == [found]


def test_a_missing_line_and_a_new_metric_are_named(pair):
    write_lines(pair[1] / "metrics.jsonl", [METRICS[0] | {"new": "absent"}])
    assert list(differences(*pair)) == [
        Difference("metrics.jsonl", 1, "new", "absent", "'absent'"),
        Difference("metrics.jsonl", 2, "step", "2", "absent"),
        Difference("metrics.jsonl", 2, "loss/loss", "None", "absent"),
    ]


def test_a_changed_rollout_is_named(pair):
    write_lines(pair[1] / "rollouts" / "000001.jsonl.gz", changed(ROLLOUTS, 1, "votes", 0, -1.0))
    assert list(differences(*pair)) == [Difference("rollouts/000001.jsonl.gz", 2, "votes", "[1.0]", "[-1.0]")]


def test_equal_rollouts_in_other_bytes_are_a_difference(pair):
    write_lines(pair[1] / "rollouts" / "000001.jsonl.gz", ROLLOUTS, mtime=1)
    (found,) = differences(*pair)
    assert (found.file, found.line) == ("rollouts/000001.jsonl.gz", 0)


def test_a_rollout_file_that_one_side_lacks_is_a_difference(pair):
    (pair[0] / "rollouts" / "000001.jsonl.gz").rename(pair[0] / "rollouts" / "000002.jsonl.gz")
    assert list(differences(*pair)) == [
        Difference("rollouts/000002.jsonl.gz", 0, "file", "present", "absent"),
        Difference("rollouts/000001.jsonl.gz", 0, "file", "absent", "present"),
    ]


@pytest.mark.parametrize("side", [0, 1])
def test_a_weight_that_differs_in_its_sign_of_zero_is_named(pair, side):
    path = pair[side] / "model" / "model.safetensors"
    new = load_file(path)
    new["head.weight"][0, 0] = -0.0
    save_file(new, path)
    values = ("-0.0 at 0", "0.0 at 0") if side == 0 else ("0.0 at 0", "-0.0 at 0")
    assert list(differences(*pair)) == [Difference("model/model.safetensors", 1, "head.weight", *values)]


def test_a_weight_of_another_type_is_named(pair):
    path = pair[1] / "model" / "model.safetensors"
    save_file(load_file(path) | {"scale": torch.tensor(2.0)}, path)
    found = Difference("model/model.safetensors", 1, "scale", "torch.bfloat16 []", "torch.float32 []")
    assert list(differences(*pair)) == [found]


def test_the_newest_checkpoint_is_compared(pair):
    other = weights()
    other["head.weight"][1, 2] = 7.0
    for step, differing in ((1, 0), (2, 1)):
        shutil.rmtree(pair[1] / "checkpoints" / f"step_{step:06d}")
        save_checkpoint(pair[1], step, other)
        assert len(list(differences(*pair))) == differing
    (found,) = differences(*pair)
    assert found == Difference("checkpoints/step_000002", 1, "model.head.weight", "5.0 at 5", "7.0 at 5")


def test_the_row_shows_the_first_difference_that_is_not_expected(pair):
    lines = [METRICS[0] | {"loss/loss": 0.6}, METRICS[1] | {"step": 3}]
    write_lines(pair[1] / "metrics.jsonl", lines)
    expect = {"capo/metrics.jsonl:loss/*": "credit computed once"}
    row, passed = same.compare_case("capo", *pair, expect)
    assert not passed
    assert row[:3] == ["capo", "default", "4"]
    assert row[3] == (
        "**1 value differs**, the first: metrics.jsonl, line 2, `step`: `2` against `3`; "
        "1 value differs as expected: credit computed once"
    )
    assert same.compare_case("capo", *pair, expect | {"*:step": "another count"})[1]
    assert not same.compare_case("grpo", *pair, expect)[1]


def test_the_server_gives_equal_answers_only_to_equal_requests(tmp_path):
    def critique(port_of, **changes):
        message = {"role": "user", "content": "".join(f"<step_{k}>x</step_{k}>" for k in range(32))}
        body = {"messages": [message], "temperature": 1.0, "top_p": 1.0, "max_tokens": 128, "seed": 5} | changes
        request = Request(f"{port_of}/chat/completions", json.dumps(body).encode())
        with urlopen(request) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    with served_critic(tmp_path, tmp_path) as (argument,):
        url = argument.partition("=")[2]
        assert critique(url) == critique(url, stream=False)
        assert critique(url).startswith("Judgment: No\n<incorrect_steps>")
        assert len({critique(url), critique(url, seed=6), critique(url, temperature=0.5)}) == 3


# ---- runs, with a stub of the trainer ----

TRAINER = """
import pathlib, sys, time
words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(words["run.dir"])
first = not run.exists()
(run / "checkpoints" / "step_000001").mkdir(parents=True, exist_ok=True)
with (run / "calls.txt").open("a") as calls:
    print(*sys.argv[1:], file=calls)
{end}
"""


def make_tree(folder, end):
    (folder / "capo_fast").mkdir(parents=True)
    (folder / "capo_fast" / "__init__.py").touch()
    (folder / "capo_fast" / "train.py").write_text(TRAINER.format(end=end))
    return folder


def calls(run):
    return (run / "calls.txt").read_text().splitlines()


def test_a_complete_run_is_kept_and_repeated_with_other_arguments(tmp_path):
    tree = make_tree(tmp_path / "tree", "")
    run = runs.ensure_run(Case(), tree, tmp_path / "case")
    runs.ensure_run(Case(), tree, tmp_path / "case")
    assert len(calls(run)) == 1
    runs.ensure_run(Case(("--seed=1",)), tree, tmp_path / "case")
    (call,) = calls(run)
    assert call.endswith("--seed=1")


def test_a_killed_run_is_resumed_by_the_same_command(tmp_path):
    tree = make_tree(tmp_path / "tree", "first and time.sleep(60)")
    run = runs.ensure_run(Case(killed=True), tree, tmp_path / "case")
    one, two = calls(run)
    assert one == two
    early = make_tree(tmp_path / "early", "")
    early.joinpath("capo_fast", "train.py").write_text("raise SystemExit(3)")
    with pytest.raises(runs.RunError, match="exit status 3 before the kill"):
        runs.ensure_run(Case(killed=True), early, tmp_path / "early-case")


def test_a_failed_run_is_a_one_line_error_and_not_kept(tmp_path):
    tree = make_tree(tmp_path / "tree", "sys.exit('no such model')")
    for _ in range(2):
        with pytest.raises(runs.RunError, match=r"^exit status 1: no such model$"):
            runs.ensure_run(Case(), tree, tmp_path / "case")


def test_imports_from_another_tree_are_refused(tmp_path):
    tree = make_tree(tmp_path / "tree", "")
    with pytest.raises(runs.RunError, match=r"capo_kernels.* is imported, wanted the package in"):
        runs._check_imports(tree)
