"""The training loop on the scripted engine: every algorithm, the files of a run, kills, signals and bad input."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripted_run
import torch
from forked import FORKS, run_ranks
from reward_functions import lengths, tiny_answer
from safetensors.torch import load_file
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, score_with, scripted_config, scripted_engine, small_arguments, tokenizer
from transformers import AutoModelForCausalLM

import capo_kernels as ck
from capo_fast.config.load import read_file
from capo_fast.config.schema import RewardConfig
from capo_fast.records import Completion
from capo_fast.runtime.files import lock
from capo_fast.train import main, run
from capo_fast.verify import VerifierError

pytestmark = pytest.mark.usefixtures("fork_server")
ELSEWHERE = "cpu" if torch.cuda.is_available() else "cuda"
"""A loss kernel that can't run on this machine's policy."""


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def described_metrics():
    """Names in the table of docs/run.md."""
    table = (Path(__file__).parents[1] / "docs/run.md").read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    return {
        name
        for line in table.splitlines()
        if line.startswith("| ")
        for name in re.findall("`(.+?)`", line.split("|")[1])
    }


def rollouts_of(folder, step):
    with gzip.open(folder / "rollouts" / f"{step:06d}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@dataclass
class Ended:
    returncode: int | None
    stderr: str


def process(folder, *arguments, die=None, largest_file=None):
    """The command in a process of its own."""
    trigger = ["--die", die] if die else []
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    command = [*trigger, "--run.dir", str(folder), *arguments]
    child = FORKS.Process(target=scripted_run.child, args=(command, log, largest_file))
    child.start()
    child.join(120)
    return Ended(child.exitcode, log.read_text())


def test_the_trace_of_a_step_has_its_operators_and_stages(tmp_path):
    small = ["--rollout.prompts", "2", "--rollout.n", "2", "--eval.path", "none"]
    run(
        scripted_config("--run.dir", str(tmp_path), "--train.steps", "2", "--train.profile", "2", *small),
        scripted_engine(),
    )
    files = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert files == ["step_000002.json.gz", "step_000002.txt"]
    trace = json.loads(gzip.decompress((tmp_path / "profile" / files[0]).read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"capo/sync", "capo/rollout", "capo/learn", "aten::mm"} <= names
    assert "aten::mm" in (tmp_path / "profile" / files[1]).read_text()


@pytest.mark.parametrize("algorithm", ["prefix", "gspo"])
def test_an_algorithm_with_a_critic_and_one_without(algorithm, tmp_path):
    """CAPO and GRPO train in other tests; tests/config/test_presets.py has the settings of each algorithm."""
    folder = tmp_path / "run"
    arguments = ["--run.dir", str(folder), "--train.steps", "2", "--algorithm", algorithm]
    summary = run(scripted_config(*arguments), scripted_engine())
    assert summary["steps"] == 2
    assert summary == json.loads((folder / "summary.json").read_text())
    lines = metrics_of(folder)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["updates_skipped"] == 0 for line in lines)
    assert any(line["updates"] == 2 and line["grad_norm"] > 0 for line in lines)
    assert lines[0]["critic/critiques"] == (16 if algorithm == "prefix" else 0)
    assert all(line["learn/flops"] > 0 and line["speed/mfu"] > 0 for line in lines)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    shipped = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).state_dict()
    assert not torch.equal(model.state_dict()["model.norm.weight"], shipped["model.norm.weight"])


def test_the_files_of_a_run(tmp_path):
    folder = tmp_path / "run"
    default = ("--reward.fn", RewardConfig().fn)  # the cheap one of the other runs must give equal rewards
    config = scripted_config("--run.dir", str(folder), "--train.steps", "3", "--eval.every", "2", *default)
    summary = run(config, scripted_engine())
    assert {"pass@1_before", "pass@1_after", "steps", "wall_seconds", "seconds_by_stage"} <= set(summary)
    assert summary["loss_kernel"] == ("cpu" if ck.status()["cpu"] == "available" else "reference")
    assert set(summary["seconds_by_stage"]) == {
        "start", "sync", "rollout", "critique", "verify", "credit", "learn", "eval", "checkpoint", "export",
    }  # fmt: skip
    for line in metrics_of(folder):
        stages = [key.removeprefix("time/") for key in line if key.startswith("time/")]
        assert [key.removeprefix("cpu/") for key in line if key.startswith("cpu/")] == stages
        assert line["cpu/learn"] > 0
    assert ["eval/pass@1" in line for line in metrics_of(folder)] == [False, True, True]
    keys = {re.sub("^(time|cpu)/.*", r"\1/<stage>", key) for line in metrics_of(folder) for key in line}
    others = {"reward/<name>", "eval/reward", "memory/device_gb"}
    assert described_metrics() - keys == others and keys <= described_metrics()
    rows = rollouts_of(folder, 2)
    assert [(row["group"], row["sample"]) for row in rows] == [(g, i) for g in range(4) for i in range(4)]
    for row in rows:
        assert row["policy_version"] == 1
        assert row["outcome"] == tiny_answer(row["text"], row["answer"])
        assert row["text"] == tokenizer().decode(row["token_ids"], skip_special_tokens=True)
        assert sum(row["step_starts"]) == len(row["votes"]) == len(row["advantages"]) == len(row["text"].split("\n\n"))
        assert row["critiques"][0]["wrong_steps"] == [k for k, vote in enumerate(row["votes"]) if vote]
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"step_000002", "step_000003"}
    assert list((folder / "tensorboard").iterdir())


def test_reward_functions_get_columns_and_lists_and_add_up(tmp_path):
    folder, data = tmp_path / "run", tmp_path / "data.jsonl"
    rows = [{"id": f"p{i}", "problem": f"{i}+{i + 1}", "answer": "1", "level": i / 8} for i in range(5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--algorithm", "grpo", "--data.path", str(data), "--eval.path", "none", "--run.dir", str(folder)]
    words += ["--reward.fn", "reward_functions:by_level", "--reward.also", "reward_functions:lengths"]
    run(scripted_config(*words, "--reward.weights", "-0.5", "--train.steps", "1"), scripted_engine())
    found, level = rollouts_of(folder, 1), {row["id"]: row["level"] for row in rows}
    assert [row["rewards"][0] for row in found] == [row["outcome"] for row in found]
    assert all(row["outcome"] == (0.0 if row["stop_reason"] == "length" else level[row["prompt_id"]]) for row in found)
    texts = [row["text"] for row in found]
    assert [row["rewards"][1] for row in found] == lengths(texts, texts), "of all rollouts in one call"
    assert [row["reward"] for row in found] == [row["rewards"][0] - 0.5 * row["rewards"][1] for row in found]
    line = metrics_of(folder)[0]
    mean = sum(row["outcome"] for row in found) / len(found)
    assert (line["reward/by_level"], line["pass_rate"]) == (pytest.approx(mean), 0.0), "no share is a right answer"
    assert mean > 0
    assert line["reward/lengths"] == pytest.approx(sum(row["rewards"][1] for row in found) / len(found))


def test_steps_without_a_verdict_end_the_run_the_same_after_a_resume(tmp_path):
    words = ["--algorithm", "grpo", "--eval.path", "none", "--run.dir", str(tmp_path / "run"), "--train.steps", "9"]
    config = scripted_config(*words, "--reward.fn", "reward_functions:never", "--reward.max_failed_steps", "3")
    for _ in range(2):  # the second start resumes after step 2
        with pytest.raises(
            VerifierError, match=r"^steps 1 to 3: no answer got a verdict \(reward\.max_failed_steps: 3\); look at "
        ):
            run(config, scripted_engine())
    assert len(rollouts_of(tmp_path / "run", 3)) == 16
    assert [line["verify/timeouts"] for line in metrics_of(tmp_path / "run")] == [16, 16, 16]


def test_dynamic_sampling_fills_the_batch_with_informative_groups(tmp_path):
    folder = tmp_path / "run"
    arguments = ["--run.dir", str(folder), "--train.steps", "2", "--algorithm", "grpo", "--rollout.n", "2"]
    run(scripted_config(*arguments, "--train.dynamic_sampling", "true"), scripted_engine())
    for line in metrics_of(folder):
        rows = rollouts_of(folder, line["step"])
        informative = {row["group"] for row in rows if any(row["advantages"])}
        assert 1 <= len(informative) <= 4
        assert line["groups/dropped"] == len({row["group"] for row in rows}) - len(informative)
    assert sum(line["groups/dropped"] for line in metrics_of(folder)) > 0


def test_a_critique_budget_covers_all_sampling_rounds_of_a_step(tmp_path):
    folder, least = tmp_path / "run", 2 * 16
    gate = ["--critic.mode", "self", "--critic.max_tokens", "16", "--critic.gate.tokens", str(least)]
    gate += ["--train.dynamic_sampling", "true"]
    run(scripted_config("--run.dir", str(folder), "--train.steps", "1", "--rollout.n", "2", *gate), scripted_engine())
    (line,) = metrics_of(folder)
    assert len({row["group"] for row in rollouts_of(folder, 1)}) > 4, "one round is not enough"
    assert 0 < line["critic/tokens"] <= least and line["critic/gated_budget"] > 0


KILLS = ["rollout:20", "critique:20", "load:3", "publish:1", "learn:1", "published:1", "recorded:2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = process(folder, "--train.steps", "5")
    assert done.returncode == 0, done.stderr
    return folder


def same_run(folder, other):
    weights = [load_file(path / "model" / "model.safetensors") for path in (folder, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
    clocks = ("time/", "cpu/", "engine/", "memory", "speed/", "tokens_per_s")
    timeless = [
        [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in lines]
        for lines in map(metrics_of, (folder, other))
    ]
    assert timeless[0] == timeless[1]
    files = [sorted((path / "rollouts").iterdir()) for path in (folder, other)]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


@pytest.mark.slow
def test_a_run_killed_at_every_stage_ends_with_the_same_bits(undisturbed, tmp_path):
    folder = tmp_path / "run"
    for place in KILLS:
        died = process(folder, "--train.steps", "5", die=place)
        assert died.returncode == -9, f"{place}: {died.returncode} {died.stderr}"
    done = process(folder, "--train.steps", "5", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    same_run(undisturbed, folder)


@pytest.mark.slow
def test_a_run_killed_while_a_checkpoint_is_written_resumes_from_the_previous_one(undisturbed, tmp_path):
    folder, words = tmp_path / "run", ("--train.steps", "5", "--checkpoint.asynchronous", "true")
    died = process(folder, *words, die="publish:3")
    assert died.returncode == -9, died.stderr
    assert [path.name for path in sorted((folder / "checkpoints").glob("step_*"))] == ["step_000000", "step_000002"]
    done = process(folder, *words)
    assert done.returncode == 0, done.stderr
    same_run(undisturbed, folder)
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"step_000004", "step_000005"}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "asynchronous"), [("critique:20:SIGTERM", "false"), ("learn:3:SIGINT", "true")])
def test_a_signal_saves_the_last_finished_step_and_ends(place, asynchronous, undisturbed, tmp_path):
    folder = tmp_path / "run"
    words = ("--checkpoint.every", "0", "--checkpoint.asynchronous", asynchronous)
    stopped = process(folder, "--train.steps", "5", *words, die=place)
    finished = 1 if place.startswith("critique") else 3
    assert stopped.returncode == 130, stopped.stderr
    assert f"capo_fast: interrupted: step {finished} is saved; --run.dir {folder} resumes the run" in stopped.stderr
    assert (folder / "checkpoints" / f"step_{finished:06d}").is_dir()
    assert process(folder, "--train.steps", "5", "--checkpoint.every", "0").returncode == 0
    same_run(undisturbed, folder)


@pytest.mark.slow
def test_two_ranks_sample_the_same_data_and_learn_the_same(undisturbed, tmp_path):
    command = ["--run.dir", str(tmp_path / "run"), "--train.steps", "5"]
    statuses, output = run_ranks(scripted_run.main, tmp_path / "run.log", command)
    assert statuses == [0, 0], output
    one, two = (load_file(path / "model" / "model.safetensors") for path in (undisturbed, tmp_path / "run"))
    assert all(torch.allclose(one[name], two[name], atol=2e-4) for name in one)
    for step in range(1, 6):
        texts = [[row["text"] for row in rollouts_of(path, step)] for path in (undisturbed, tmp_path / "run")]
        assert texts[0] == texts[1]


def test_a_finished_run_is_shown_again_and_not_trained(undisturbed):
    before = (undisturbed / "model" / "model.safetensors").read_bytes()
    done = process(undisturbed, "--train.steps", "5")
    assert done.returncode == 0, done.stderr
    assert (undisturbed / "model" / "model.safetensors").read_bytes() == before
    assert len(metrics_of(undisturbed)) == 5


def test_resume_never_moves_the_old_folder_aside(undisturbed):
    done = process(undisturbed, "--train.steps", "0", "--resume", "never")
    assert done.returncode == 0, done.stderr
    aside = undisturbed.with_name("run.old-1")
    assert len(metrics_of(aside)) == 5
    assert metrics_of(undisturbed) == []
    os.rename(undisturbed, undisturbed.with_name("empty"))
    os.rename(aside, undisturbed)


def test_a_run_has_one_writer(undisturbed, capsys):
    with lock(undisturbed):
        assert main(small_arguments("--run.dir", str(undisturbed), "--train.steps", "9")) == 1
        assert main(small_arguments("--run.dir", str(undisturbed), "--resume", "never")) == 1
    assert capsys.readouterr().err.count(f"error: {undisturbed}: another process is running this run") == 2
    assert len(metrics_of(undisturbed)) == 5


def test_a_run_does_not_resume_with_other_settings(undisturbed, capsys):
    assert main(small_arguments("--run.dir", str(undisturbed), "--train.lr", "1e-3")) == 2
    assert "capo_fast: error: train.lr: 0.001, but the run in" in capsys.readouterr().err
    assert len(metrics_of(undisturbed)) == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--train.stepz", "3"], "train.stepz: unknown setting"),
        (["--train.lr", "fast"], "train.lr: "),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data.path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.path", "{tmp}/broken.jsonl"], "broken.jsonl, line 2"),
        (["--data.answer_field", "solutoin"], "solutoin"),
        (["--engine.max_model_len", "60", "--critic.max_tokens", "20"], "prompts are longer than 12 tokens"),
        (["--credit.outcome_weight", "1"], "credit."),
        (["--model.path", "/nowhere/model"], "/nowhere/model"),
        (["--critic.prompt", "{tmp}/template.txt"], "template.txt"),
        (["--reward.fn", "no_such_module:f"], "no_such_module"),
        (["--policy.loss_kernel", ELSEWHERE], f"policy.loss_kernel: impl='{ELSEWHERE}' cannot run: "),
    ],
)
def test_bad_input_is_a_clear_one_line_error(arguments, line, tmp_path, capsys):
    (tmp_path / "broken.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n{"problem": \n')
    (tmp_path / "template.txt").write_text("{{problem}}")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    status = main(["--run.dir", str(tmp_path / "run"), "--train.steps", "1", *arguments])
    [error] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert status in (1, 2)
    assert error.startswith("capo_fast: error: ")
    assert line in error


def test_a_full_disk_stops_cleanly_and_keeps_earlier_files(tmp_path):
    """A file size limit emulates a full disk, so the checkpoint write fails half-way."""
    folder = tmp_path / "run"
    assert process(folder, "--train.steps", "2").returncode == 0
    stopped = process(folder, "--train.steps", "4", largest_file=1_500_000)
    assert stopped.returncode == 1, stopped.stderr
    expected = (
        r"capo_fast: error: step 4 not saved, earlier checkpoints kept: can't write \S+: File too large \([\d,]+ bytes"
    )
    assert re.search(expected, stopped.stderr)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000000", "step_000002"]
    assert process(folder, "--train.steps", "4").returncode == 0


def test_a_run_keeps_its_date_and_prints_notes_about_its_data(tmp_path, monkeypatch, capsys):
    """A template that prints the date, several right answers, an overlong prompt, a held-out problem in training."""
    model, data, folder = tmp_path / "model", tmp_path / "data.jsonl", tmp_path / "run"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ strftime_now('%d') }}+" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    texts = [f"{i}+1" for i in range(6)] + ["1" * 300]
    data.write_text("".join(json.dumps({"problem": text, "answer": [0, 1.0, *"234567"]}) + "\n" for text in texts))
    words = ["--algorithm", "grpo", "--model.path", str(model), "--data.path", str(data), "--eval.path", str(data)]
    words += ["--run.dir", str(folder), "--data.overlong", "drop", "--eval.limit", "2", "--train.steps"]
    prompt_starts = []

    def digit(request):
        prompt_starts.append(tokenizer().decode(request.prompt_ids)[:3])
        ids = (*tokenizer().encode("A:7", add_special_tokens=False), tokenizer().eos_token_id)
        return Completion(request.id, ids, (-0.5,) * len(ids), "A:7", True)

    for day, steps in ((3, "0"), (4, "1")):
        monkeypatch.setattr(
            "capo_fast.loaders.date", SimpleNamespace(today=lambda day=day: datetime(2025, 2, day).date())
        )
        run(scripted_config(*words, steps), ScriptedEngine(digit, score_with(MODEL)))
        output = capsys.readouterr().out
        assert "the chat template prints the date 2025-02-03 (data.date), also in a resumed run" in output
        assert "1 of 7 training problems are dropped: their prompts are too long" in output
        assert "2 of 2 held-out problems are training problems as well" in output
    assert set(prompt_starts) == {"03+"}
    assert read_file(folder / "config.yaml")["data.date"] == "2025-02-03"
    assert {row["outcome"] for row in rollouts_of(folder, 1)} == {1.0}
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["overlong_problems"], summary["heldout_in_training"]) == (1, 2)
