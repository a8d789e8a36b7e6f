"""A run of `capo sft`: without an engine, resumed bit for bit, held out by problem, with one-line errors."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from safetensors.torch import load_file
from scripted_world import MODEL
from transformers import AutoModelForCausalLM

from capo_fast.cli import main
from capo_fast.config.sft import SftConfig
from capo_fast.runlog.recorder import read_metrics
from capo_fast.sft.learner import AnswerLearner

MADE = ("--model.path", "pkg://capo_fast.tiny/model", "--policy.dtype", "float32", "--data.system_prompt", "none")
SHORT = (*MADE, "--train.batch", "5", "--train.lr", "1e-3", "--checkpoint.every", "0", "--checkpoint.keep", "9")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """14 problems with two rows each."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    made = [{"prompt": f"{a}+{a}", "completion": f"{a}+{a}={2 * a}\n\nA:{2 * a}"} for a in range(14)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*made, *made]))
    return path


def sft(rows, folder, *arguments):
    return main(["sft", *SHORT, "--data.path", str(rows), "--run.dir", str(folder), *arguments])


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """An uninterrupted run without vLLM installed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        assert sft(rows, folder, "--eval.share", "0.3", "--eval.every", "2", "--train.profile", "1") == 0
    return folder


def untimed(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    times = ("time/", "cpu/", "tokens_per_s", "memory_gb")
    return [{key: value for key, value in line.items() if not key.startswith(times)} for line in lines]


def test_a_run_learns_and_writes_a_model_and_its_figures(whole):
    summary = json.loads((whole / "summary.json").read_text())
    lines = untimed(whole)
    assert summary["loss_after"] < summary["loss_before"] and summary["algorithm"] == "sft"
    assert summary["examples"] % 2 == 0 and 0 < summary["examples"] < 28, "both rows of a problem are in one part"
    assert summary["steps"] == len(lines) == -(-summary["examples"] // 5)
    assert [line["step"] for line in lines if "eval/loss" in line] == [2, 4] and summary["best_step"] == 4
    assert lines[-1]["eval/loss"] == summary["loss_after"] and lines[-1]["epoch"] == 1.0
    assert "aten::mm" in (whole / "profile" / "step_000001.txt").read_text()
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    assert model.config.eos_token_id == AutoModelForCausalLM.from_pretrained(MODEL).config.eos_token_id


def test_an_interrupted_run_is_saved_and_resumes_with_the_same_bits(whole, rows, tmp_path, monkeypatch, capsys):
    fit, steps = AnswerLearner.fit, []

    def interrupted(self, examples):
        steps.append(examples)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return fit(self, examples)

    folder, more = tmp_path / "run", ("--eval.share", "0.3", "--eval.every", "2")
    with monkeypatch.context() as patch:
        patch.setattr(AnswerLearner, "fit", interrupted)
        assert sft(rows, folder, *more) == 130
    assert f"interrupted: step 2 is saved; --run.dir {folder} resumes the run" in capsys.readouterr().err
    assert main(["status", str(folder)]) == 0
    assert "step        2 of 4" in capsys.readouterr().out
    assert sft(rows, folder, *more) == 0
    assert untimed(folder) == untimed(whole)
    for file in (
        "checkpoints/step_000004/model-00000.safetensors",
        "checkpoints/step_000004/optimizer-00000.safetensors",
    ):
        ours, theirs = load_file(folder / file), load_file(whole / file)
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_other_settings_are_refused_on_a_resume_and_a_report_is_written(whole, rows, capsys):
    assert sft(rows, whole, "--eval.share", "0.3", "--eval.every", "2", "--train.epochs", "2") == 2
    assert "train.epochs: 2, but the run in " in capsys.readouterr().err
    assert main(["report", str(whole)]) == 0
    assert main(["status", str(whole)]) == 0
    assert "held-out loss" in capsys.readouterr().out


def test_a_critic_s_adapter_is_trained_on_labels_without_the_held_out_problems(tmp_path, capsys):
    made = [{"problem": f"{a}+1", "steps": [f"{a}+1={a}", f"A:{a}"], "wrong_steps": [0]} for a in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row | {"id": "x"}) + "\n" for row in made[:1]))
    template = ("--data.critic_prompt", "pkg://capo_fast.credit/prompts/tiny.txt", "--lora.rank", "4")
    arguments = ("--task", "critic", "--eval.path", str(tmp_path / "held.jsonl"), *template)
    assert sft(tmp_path / "train.jsonl", tmp_path / "run", *arguments) == 0
    assert "1 rows of data.path are left out: eval.path has their problems" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["examples"], summary["algorithm"]) == (5, "sft-critic")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ("--train.steps", "7"),
            "train.steps: found 7, wanted at most 6, the updates of train.epochs (1); more need more",
        ),
        (("--train.profile", "9"), "train.profile: found 9, wanted at most train.steps (6)"),
        (("--data.max_tokens", "9999"), "data.max_tokens: found 9999, wanted at most "),
        (("--data.max_tokens", "5"), " tokens, wanted at most 5 (data.max_tokens); data.overlong: drop"),
        (("--data.max_tokens", "5", "--data.overlong", "drop"), "no examples to train on: all 28 are too long"),
        (("--eval.path", "x.jsonl", "--eval.share", "0.5"), "eval.share: found 0.5, wanted 0 with eval.path"),
        (("--train.epochs", "x"), "train.epochs: found 'x', wanted integer > 0"),
    ],
)
def test_unusable_settings_are_a_one_line_error(arguments, error, rows, tmp_path, capsys):
    assert sft(rows, tmp_path / "run", *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert error in line
    assert not (tmp_path / "run").exists()


def test_help_lists_every_setting_with_its_text(capsys):
    with pytest.raises(SystemExit):
        main(["sft", "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    assert "--train.batch  integer > 0  [80]\n      Examples per update.\n" in text
    assert "train.minibatches" not in text and SftConfig().algorithm == "sft"
