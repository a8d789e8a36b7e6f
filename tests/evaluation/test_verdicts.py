"""`capo verify` on one pair, a file and a run; time-outs; wrong arguments."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from capo_fast import cli
from capo_fast.evaluation import verdicts
from capo_fast.verify.explain import stages


def verify(capsys, *words) -> tuple[int, str, str]:
    status = cli.main(["verify", *map(str, words)])
    return (status, *capsys.readouterr())


def written(path: Path, *rows: dict) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((r"so \boxed{1/2}", "0.5"), ("answer       1/2", "reference    0.5", "verdict      right")),
        (("-x+1", "1-x"), ("answer       -x+1", "verdict      right")),
        (("it is 5, and", "5", "--truncated"), ("answer       none", "verdict      wrong", "rule         no answer")),
        (("0.33", "1/3", "--reward.tolerance", "0.05"), ("verdict      right",)),
        (("--reward.tolerance", "0.05", "0.33", "1/3"), ("verdict      right",)),
        (("0.33", "--reward.tolerance=0.05", "--reward.percent", "false", "1/3"), ("verdict      right",)),
        (("2 1/2", "2.5", "--explain"), (r"normalised   2\frac{1}{2}", "rule         numbers")),
    ],
)
def test_a_pair_is_judged(words, message, capsys):
    status, out, _ = verify(capsys, *words)
    assert status == 0 and [line for line in message if line not in out.splitlines()] == []


def test_stages_go_from_the_texts_to_the_verdict():
    found = stages("1 or 2?", "3", truncated=True)
    assert found[:3] == [("response", "1 or 2?"), ("answer", None), ("normalised", None)]
    assert found[-2:] == [("rule", "no answer"), ("verdict", "wrong")]


def test_the_rows_of_a_file_are_judged_and_written(tmp_path, capsys):
    rows = [
        {"mine": r"\boxed{5}", "its": {"answer": 5}},
        {"mine": "\x1b[2J\\boxed{\n\x1b6}", "its": {"answer": "5"}},
        {"mine": "5", "its": {"answer": "5"}, "truncated": True},
        {"mine": "5", "its": {"answer": ["4", "5"]}},
    ]
    path, out = written(tmp_path / "a.jsonl", *rows), tmp_path / "out.jsonl"
    fields = ("--response-field", "mine", "--reference-field", "its.answer")
    status, text, _ = verify(capsys, path, *fields, "--out", out)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert status == 0 and [row["verdict"] for row in found] == ["right", "wrong", "wrong", "right"]
    assert [row["answer"] for row in found] == ["5", "\x1b6", None, "5"]
    assert text.splitlines()[-1].startswith("4 answers: 2 right, 2 wrong, 0 timed out, 0 no response; by rule: ")
    assert "\x1b" not in text and r"\x1b6 | 5" in text


def test_a_run_s_rollouts_are_judged_by_its_settings(tmp_path, capsys):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "config.yaml").write_text("reward.percent: false\n")
    row = {"text": r"\boxed{28\%}", "answer": "28", "outcome": 1.0, "stop_reason": "stop"}
    path = written(tmp_path / "rollouts/000001.jsonl.gz", row, row | {"answer": "0.28"})
    for what in (tmp_path, path):
        status, text, _ = verify(capsys, what)
        assert status == 0 and "2 answers: 1 right, 1 wrong" in text
        assert text.splitlines()[-1] == "1 of 2 verdicts differ from the recorded outcome"
    status, text, _ = verify(capsys, tmp_path, "--reward.fn", "my_rewards:graded")
    last = "the recorded outcomes are those of my_rewards:graded, not the rule verifier's: not compared"
    assert (status, text.splitlines()[-1]) == (0, last)


def test_only_a_run_s_own_settings_are_used(tmp_path, capsys, monkeypatch):
    """Another tool's config.yaml may be in the current folder, or two folders above a file."""
    (inner := tmp_path / "outputs" / "b").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "outputs", inner):
        (folder / "config.yaml").write_text("hydra: {run: x}\n")
    path = written(inner / "a.jsonl", {"text": r"\boxed{28\%}", "answer": "28"})
    for folder in (tmp_path, inner.parent, inner):
        monkeypatch.chdir(folder)
        for what in (path, path.relative_to(folder)):
            status, text, _ = verify(capsys, what)
            assert status == 0 and "1 answers: 1 right" in text


def test_a_relative_path_has_the_settings_of_its_run(tmp_path, capsys, monkeypatch):
    (rollouts := tmp_path / "rollouts").mkdir()
    (tmp_path / "config.yaml").write_text("reward.percent: false\n")
    written(rollouts / "000001.jsonl.gz", {"text": r"\boxed{28\%}", "answer": "28"})
    for folder, what in ((tmp_path, "."), (tmp_path, "rollouts/000001.jsonl.gz"), (rollouts, "000001.jsonl.gz")):
        monkeypatch.chdir(folder)
        assert "1 answers: 0 right, 1 wrong" in verify(capsys, what)[1]


def test_a_fine_tuning_s_folder_has_no_rollouts(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: chat\n")
    status, _, error = verify(capsys, tmp_path)
    assert status == 2 and f"{tmp_path}: found no rollouts, wanted a file of answers or a run's folder" in error


def test_a_row_without_a_response_is_counted(tmp_path, capsys):
    rows = [{"response": None, "reference": ["1", "2"], "outcome": 0.0}, {"response": "3", "reference": "3"}]
    path, out = written(tmp_path / "a.jsonl", *rows), tmp_path / "out.jsonl"
    status, text, _ = verify(capsys, path, "--out", out)
    assert status == 0
    assert text.splitlines()[-1].startswith("2 answers: 1 right, 0 wrong, 0 timed out, 1 no response; by rule: ")
    assert [json.loads(line)["verdict"] for line in out.read_text().splitlines()] == ["no response", "right"]
    assert verify(capsys, written(path, rows[0]))[0] == 1


def test_a_time_out_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verdicts, "JUDGE", "reward_functions:last_word")
    path = written(tmp_path / "a.jsonl", {"response": "slow", "reference": "1"})
    for words in (("slow", "1"), (path,)):
        status, text, _ = verify(capsys, *words, "--reward.timeout_s", "0.2")
        assert status == 1 and "timed out" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no/such.jsonl",), "no/such.jsonl: wanted a file of answers or a run's folder"),
        (("{empty}",), "no answers in it"),
        (("a", "b", "c"), "found 3 arguments, wanted capo verify ANSWER REFERENCE | FILE | RUN"),
        (("{rows}", "--response-field", "pred"), "line 1: no field 'pred' (--response-field); found 'text', 'answer'"),
        (("{rows}",), "line 1: field 'answer' (--reference-field): found null, wanted text or a number"),
        (("{rows}", "--explain"), "--explain and --truncated are for one pair"),
        (("a", "b", "--reward.tolerence", "1"), "did you mean reward.tolerance?"),
        (("a", "b", "--reward.tolerance"), "--reward.tolerance: needs a value"),
        (("--reward.tolerance", "--explain", "a", "b"), "--reward.tolerance: needs a value"),
        (("--reward.tolerance", "-1", "a", "b"), "reward.tolerance: found '-1', wanted number >= 0"),
        (("a", "b", "--out"), "expected one argument"),
        (("a", "b", "--out", "c"), "are for a file: found one pair"),
    ],
)
def test_wrong_arguments_are_a_one_line_error(words, message, tmp_path, capsys):
    rows = written(tmp_path / "rows.jsonl", {"text": "1", "answer": None})
    written(empty := tmp_path / "empty.jsonl")
    status, _, error = verify(
        capsys, *(word.replace("{rows}", str(rows)).replace("{empty}", str(empty)) for word in words)
    )
    assert status == 2 and message in error and error.count("\n") == 1
