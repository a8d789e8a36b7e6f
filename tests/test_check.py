"""`capo check`: a line per check, and exit status 1 at the first failure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripted_server import Scripted

from capo_fast import cli
from capo_fast.check import main
from capo_fast.config.paths import resolve_path

NAMES = ["configuration", "reward", "credit", "engine", "model", "data", "critic", "verdict"]


def checked(capsys, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines."""
    status = main(arguments)
    return status, capsys.readouterr().out.splitlines()


def test_the_embedded_default_passes(capsys):
    status, lines = checked(capsys)
    assert status == 0
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in NAMES]
    assert lines[0].endswith("capo, 16 steps of 16 prompts x 8 rollouts of at most 48 tokens")
    counts = "4,096 problems, the longest prompt of the first 1,000 14 of 208 tokens; 400 held out"
    assert lines[5].endswith(f"{counts}, of pkg://capo_fast.tiny/heldout.jsonl")
    assert lines[7].endswith("problem tiny-0 with its reference as the response: 1 by capo_fast.verify:answers_equal")


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the embedded model, for tests to damage."""
    return Path(shutil.copytree(resolve_path("pkg://capo_fast.tiny/model"), tmp_path / "model"))


def test_a_failure_ends_the_check(capsys, tmp_path):
    (tmp_path / "template.txt").write_text("nothing in it")
    for arguments, failed in [
        (["--train.steps", "x"], "configuration  train.steps: found 'x', wanted integer >= 0"),
        (["--reward.fn", "capo_fast.verify:nothing"], "reward         reward.fn: capo_fast.verify:nothing can't be"),
        (["--model.path", str(tmp_path / "none")], f"model          model.path: {tmp_path}/none: no such model folder"),
        (["--policy.loss_kernel", "triton"], "model          policy.loss_kernel: "),
        (
            ["--lora.rank", "2", "--lora.targets", "nope"],
            "model          lora.targets: the model has no nope, want some of",
        ),
        (["--data.path", "none.jsonl"], "data           none.jsonl: can't read it"),
        (
            ["--engine.max_model_len", "50", "--critic.max_tokens", "9"],
            "data           4096 of 4096 prompts are",
        ),
        (["--critic.prompt", str(tmp_path / "template.txt")], "critic         critic.prompt: "),
    ]:
        status, lines = checked(capsys, *arguments)
        assert status == 1
        [line] = [line for line in lines if not line.startswith("ok ")]
        assert line.startswith(f"FAILED  {failed}")


def test_data_is_checked_without_the_model(capsys, tmp_path):
    words = ["--model.path", str(tmp_path / "none"), "--reward.fn", "reward_functions:by_level"]
    status, lines = checked(capsys, *words)
    assert status == 1 and lines[-2].startswith("FAILED  model ")
    assert lines[-1].startswith("FAILED  data ") and "line 1: no field 'level' (reward function" in lines[-1]
    rows = "4,096 rows of pkg://capo_fast.tiny/train.jsonl.gz, 400 rows of pkg://capo_fast.tiny/heldout.jsonl"
    last = f"ok      data           {rows} have their fields; lengths need the model's tokenizer"
    assert checked(capsys, *words[:2])[1][-1] == last


def test_a_merged_adapter_follows_the_rules_of_a_swapped_in_critic(capsys, monkeypatch):
    """A remote engine has the base's weights after the critiques, and would sample the next round with them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = "--nproc 2 --engine.ranks 1 --loss.is_mode truncate --rollout.top_p 1 --train.dynamic_sampling true"
    arguments = ["check", *words.split(), "--lora.rank", "2", "--policy.dtype", "float32"]
    assert cli.main([*arguments, "--engine.merge_lora", "false"]) == 0
    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert "FAILED  configuration  engine.ranks: found 1, wanted 0 with train.dyn" in capsys.readouterr().out


def test_the_number_of_ranks_is_read_as_in_training(capsys):
    assert cli.main(["check", "--nproc", "4", "--engine.tensor_parallel", "2"]) == 0
    capsys.readouterr()
    assert cli.main(["check", "--nproc", "3", "--engine.tensor_parallel", "2"]) == 1
    failed = "engine.tensor_parallel: found 2, wanted a divisor of the number of ranks, 3"
    assert capsys.readouterr().out == f"FAILED  configuration  {failed}\n"


def test_weights_must_exist(capsys, model):
    (model / "model.safetensors").unlink()
    status, lines = checked(capsys, "--model.path", str(model))
    assert (status, lines[-2]) == (
        1,
        f"FAILED  model          model.path: {model}: no weights, wanted model.safetensors or "
        "model.safetensors.index.json",
    )


def test_an_unknown_kind_of_model_is_a_one_line_error(capsys, model):
    (model / "config.json").write_text("{}")
    status, lines = checked(capsys, "--model.path", str(model))
    assert status == 1 and lines[-2].endswith(
        f"model.path: {model}: config.json has no model_type, wanted one such as qwen2, qwen3, llama"
    )


def test_a_reward_module_that_fails_is_a_one_line_error(capsys, tmp_path, monkeypatch):
    (tmp_path / "bad_reward.py").write_text("raise ValueError('first line\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    status, lines = checked(capsys, "--reward.fn", "bad_reward:f")
    failed = "reward.fn: bad_reward:f can't be loaded: ValueError: first line second line"
    assert (status, lines[-1]) == (1, f"FAILED  reward         {failed}")


def test_reward_functions_are_called_once(capsys, tmp_path, monkeypatch):
    also = ["--reward.also", "reward_functions:digit_share", "--reward.weights", "1"]
    assert checked(capsys, *also)[1][-1].endswith(
        "1 by capo_fast.verify:answers_equal, 1 by reward_functions:digit_share"
    )
    line = checked(capsys, "--reward.fn", "reward_functions:never")[1][-1]
    assert line.startswith("FAILED  verdict        reward_functions:never: no verdict on problem tiny-0 within reward.")
    (tmp_path / "two_rewards.py").write_text("def f(response, reference):\n    return 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, lines = checked(capsys, "--reward.fn", "two_rewards:f")
    assert status == 1 and "it returned 2.0, which is neither a bool nor a float in [0, 1]" in str(lines)


def test_a_frozen_critic_must_have_the_policy_s_architecture(capsys, model):
    arguments = ["--critic.path", str(model)]
    assert checked(capsys, *arguments)[0] == 0
    missing = checked(capsys, "--critic.path", "/nowhere")[1][-1]
    assert missing == "FAILED  critic         critic.path: /nowhere: no such model folder"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    status, lines = checked(capsys, *arguments)
    assert status == 1 and lines[-1].startswith("FAILED  critic         critic.path: its rms_norm_eps is ")


SERVED = ["--critic.mode", "server", "--critic.server.max_model_len", "256", "--critic.path"]


def test_a_critic_that_the_run_will_serve_is_checked_and_not_started(capsys, model, monkeypatch):
    """Its architecture may differ from the policy's."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    status, lines = checked(capsys, *SERVED, str(model))
    assert (status, lines[6]) == (
        0,
        f"ok      critic         {model}, qwen2, 0.6 MB of weights, at a server on the CPU",
    )


def without_template(folder):
    entries = json.loads((folder / "tokenizer_config.json").read_text())
    del entries["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer, wanted tokenizer.json beside the weights"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights, wanted model.safetensors"),
        (without_template, "no chat template, wanted one"),
        (lambda folder: shutil.rmtree(folder), "no such model folder"),
    ],
)
def test_a_critic_folder_that_can_not_be_served_is_a_one_line_error(change, message, capsys, model):
    change(model)
    line = checked(capsys, *SERVED, str(model))[1][-1]
    assert line.startswith(f"FAILED  critic         critic.path: {model}: {message}")


def test_the_context_of_a_served_critic_is_its_own(capsys, model):
    line = checked(capsys, *SERVED, str(model), "--critic.server.max_model_len", "100000")
    assert "critic.server.max_model_len" in str(line)


def test_a_critic_s_server_must_list_its_models(capsys):
    server = Scripted()
    arguments = ["--critic.mode", "endpoint", "--endpoint.url", server.url]
    status, lines = checked(capsys, *arguments)
    assert (status, lines[6]) == (0, f"ok      critic         critic at {server.url}")
    line = checked(capsys, *arguments, "--endpoint.model", "other")[1][-1]
    assert line.startswith("FAILED  critic         endpoint.model: found other, wanted one that")
    server.models = 200, {"data": [{"id": "a"}, {"id": "b"}]}
    status, lines = checked(capsys, *arguments)
    assert status == 1 and lines[-1].endswith(f"found None, wanted one that {server.url} offers: a, b")
    server.stop()
    status, lines = checked(capsys, *arguments)
    assert status == 1 and f"critic at {server.url} can't be reached" in lines[-1]
