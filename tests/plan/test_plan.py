"""What a plan lowers, recommends and prints."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
import yaml

from capo_fast.config.critic import GateConfig
from capo_fast.config.load import build_config
from capo_fast.errors import ConfigError
from capo_fast.plan import hardware
from capo_fast.plan.__main__ import main
from capo_fast.plan.hardware import NVIDIA
from capo_fast.plan.job import Job, Lengths
from capo_fast.plan.levers import lower
from capo_fast.plan.memory import host, moments, room
from capo_fast.plan.recommend import recommend, settings
from capo_fast.plan.seconds import stages, step_seconds
from capo_fast.plan.shapes import find_shape
from capo_fast.plan.text import time_lines


def job(model: str = "qwen2.5-7b", ranks: int = 8, device: str = "h100", **values: object) -> Job:
    config = build_config({key.replace("__", "."): value for key, value in values.items()})
    return Job(config, find_shape(model), NVIDIA[device], ranks, -(-ranks // 8), Lengths(256, 1024, 512))


def test_a_run_that_does_not_fit_is_lowered_until_it_does_and_no_further():
    given = job(ranks=2)
    assert room(given) < 0
    lowered, changes = lower(given)
    assert room(lowered) >= 0
    assert sum(each.saved for each in changes) == pytest.approx(room(lowered) - room(given))
    for each in changes:
        section, name = each.key.split(".")
        undone = lowered.with_settings(**{f"{section}__{name}": getattr(getattr(given.config, section), name)})
        assert room(undone) < 0, f"{each.key} was lowered for nothing"


def test_a_job_that_fits_is_unchanged_and_one_that_never_fits_is_reported():
    assert lower(job(ranks=64))[1] == []
    lowered, _ = lower(job("qwen2.5-72b", ranks=1))
    assert room(lowered) < 0


@pytest.mark.parametrize(
    ("values", "moment", "part"),
    [
        ({"train__offload_optimizer": True}, "backward", "optimizer"),
        ({"loss__kl_coef": 0}, "rollout", "reference"),
        ({"train__optimizer": "adamw-fused"}, "update", "update"),
        ({"policy__gradient_checkpointing": 4}, "loss", "activations"),
        ({"engine__tensor_parallel": 4}, "rollout", "engine's weights"),
        ({"train__optimizer": "adamw-8bit"}, "rollout", "optimizer"),
    ],
)
def test_each_lever_lowers_its_part(values, moment, part):
    before, after = moments(job())[moment], moments(job(**values))[moment]
    assert after.get(part, 0) < before[part] / 1.3
    assert all(after[name] == pytest.approx(before[name]) for name in after if name not in (part, "engine's workspace"))


def test_engines_on_ranks_of_their_own_hold_nothing_of_the_learner():
    apart = job(engine__ranks=4, loss__is_mode="truncate", rollout__top_p=1)
    assert apart.shards == apart.engines.count == 4
    assert "optimizer" not in moments(apart)["rollout"]
    assert "engine's weights" not in moments(apart)["sync"]
    assert step_seconds(apart) < sum(stages(apart).values())


def test_a_critic_of_single_steps_gets_ten_times_as_many_requests():
    """With limits of equal length."""
    whole, steps = (
        job(critic__max_tokens=512, critic__step__max_tokens=512, critic__reads=reads) for reads in ("solution", "step")
    )
    assert (whole.critiques_each, steps.critiques_each) == (4, 40)
    assert 5 < stages(steps)["critique"] / stages(whole)["critique"] < 10
    assert "critic.gate" not in time_lines(steps)
    assert "critic.gate" in time_lines(steps.with_settings(critic__gate=GateConfig(groups="mixed")))


def test_a_critic_of_another_size_takes_turns_on_the_same_devices():
    """The paper's 72B beside a 7B policy, on 8 devices."""
    settings = {"engine__tensor_parallel": 4, "policy__gradient_checkpointing": True, "critic__mode": "server"}
    given = replace(job(**settings, critic__path="Qwen/Qwen2.5-72B"), critic=find_shape("qwen2.5-72b"))
    assert moments(given)["critique"]["critic's weights"] == pytest.approx(2 * 72.7e9 / 8, rel=0.01)
    assert "engine's weights" not in moments(given)["critique"]
    assert room(given) > 0 and host(given)["critic's weights, asleep"] == pytest.approx(2 * 72.7e9, rel=0.01)
    assert replace(given, ranks=16, hosts=2).servers.count == 2, "one on each host"


def served(ranks: int = 8, device: str = "h100", **values: object) -> Job:
    """A 72B critic on a server of its own."""
    settings = {"engine__tensor_parallel": 4, "policy__gradient_checkpointing": True, "critic__mode": "server"}
    given = job(ranks=ranks, **settings, critic__path="Qwen/Qwen2.5-72B", **values)
    return replace(given, critic=find_shape("qwen2.5-72b"), hardware=NVIDIA[device])


def test_a_critics_server_has_processes_of_its_own():
    alone, given = job(engine__tensor_parallel=4), served()
    assert moments(given)["update"]["CUDA and NCCL"] == moments(alone)["update"]["CUDA and NCCL"] + 2**30
    assert host(given)["processes"] == host(alone)["processes"] + 10 * 1.5 * 2**30


def test_a_critics_server_that_does_not_fit_gets_a_smaller_cache():
    given = served(critic__server__kv_cache_gb=60.0)
    assert room(given) < 0
    lowered, changes = lower(given)
    assert room(lowered) >= 0 and [each.key for each in changes] == ["critic.server.kv_cache_gb"]
    assert lowered.config.critic.server.kv_cache_gb < 60


def test_a_critics_server_is_on_one_host():
    with pytest.raises(ConfigError, match=r"^critic\.server\.tensor_parallel: found 16, wanted at most 8, the devices"):
        served(16, critic__server__tensor_parallel=16)


def test_a_critics_server_has_as_many_devices_as_its_heads_divide():
    given = replace(job(critic__mode="server", critic__path="x"), critic=find_shape("qwen2.5-7b"))
    assert given.servers.config.tensor_parallel == 4


def test_the_queries_of_an_estimator_take_time():
    """docs/credit.md: k (S - 1) L / 2 tokens per rollout against its own L."""
    plain, asking = (stages(job(algorithm="grpo", credit__process=each)) for each in ("none", "step-values"))
    assert asking["credit"] > 5 * plain["rollout"]
    frozen = stages(job(credit__process="critique-ratio"))
    assert frozen["credit"] > 0 and frozen["sync"] > 1.2 * stages(job())["sync"], "the policy is pushed twice"


def test_a_critic_that_is_loaded_takes_more_of_the_host_than_one_that_waits():
    found, step = host(job("qwen2.5-32b", checkpoint__asynchronous=False)), 8 * 1.5 * 2**30
    assert sum(found.values()) == pytest.approx(step + 4 * 32.8e9, rel=0.01)


def test_host_memory_is_that_of_the_ranks_that_use_it():
    values = {"engine__ranks": 8, "loss__is_mode": "truncate", "lora__rank": 8, "checkpoint__asynchronous": True}
    apart = job(ranks=16, **values)
    assert "engine's weights, asleep" not in host(apart), "engines on ranks of their own never sleep"
    narrow, wide = (
        host(job("qwen2.5-32b", checkpoint__asynchronous=True, critic__mode="self", train__optimizer=each))
        for each in ("adamw-8bit", "adamw")
    )
    assert narrow["a checkpoint's copy"] < wide["a checkpoint's copy"] / 1.9


def test_what_the_reference_costs_on_the_host_has_its_time():
    assert stages(job(reference__offload=True))["learn"] > stages(job())["learn"]


def test_no_lever_is_a_setting_that_a_run_refuses():
    """An adapter wants a critic that is its base; 12 devices can't share moments in 8 bits."""
    given = job("qwen2.5-72b", ranks=12, critic__path="x")
    lowered, _ = lower(given)
    assert room(lowered) < 0 and not lowered.is_lora and lowered.config.train.optimizer != "adamw-8bit"


@pytest.mark.parametrize("found", ["1000000", "max"])
def test_memory_is_what_a_container_may_use(found, tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(found)
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    assert hardware.usable_memory() == (10**6 if found.isdecimal() else psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("ranks", "values", "message"),
    [
        (12, {"engine__tensor_parallel": 4}, "on hosts of 6 devices, wanted each engine on one host"),
        (16, {"engine__ranks": 4, "loss__is_mode": "truncate"}, "found node with 12 ranks that learn on hosts of 8"),
        (8, {"engine__tensor_parallel": 8}, "wanted a divisor of the model's num_attention_heads, 28"),
        (6, {"train__optimizer": "adamw-8bit"}, "found adamw-8bit with weights in 6 shards"),
        (8, {"engine__tensor_parallel": 4, "credit__process": "critique-ratio"}, "which calls the engine"),
    ],
)
def test_a_job_that_would_be_refused_is_not_planned(ranks, values, message):
    with pytest.raises(ConfigError, match=message):
        job(ranks=ranks, **values)


@pytest.mark.parametrize(
    ("model", "ranks", "device"), [("qwen2.5-7b", 8, "h100"), ("qwen3-8b", 1, "h200"), ("llama-3.1-70b", 64, "a100")]
)
def test_a_recommendation_fits_and_is_a_file_of_settings(model, ranks, device, tmp_path):
    given, _ = recommend(find_shape(model), 8192, NVIDIA[device], ranks, -(-ranks // 8))
    assert room(given) >= 0
    (tmp_path / "run.yaml").write_text(settings(given))
    words = ["--config", str(tmp_path / "run.yaml"), "--data.path", "x.jsonl", "--device", device, "--gpus", str(ranks)]
    assert main(words) == 0


@pytest.mark.parametrize("name", ["123", "#1", "a: b"])
def test_recommended_settings_are_yaml_whatever_the_folder_is_called(name):
    given, _ = recommend(replace(find_shape("qwen2.5-1.5b"), name=name), 4096, NVIDIA["h100"], 8, 1)
    assert yaml.safe_load(settings(given))["model.path"] == name


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "configs/paper/common.yaml", "configs/paper/qwen2.5-7b.yaml", "--gpus", "8"],
        ["--config", *(f"configs/paper/{name}.yaml" for name in ("common", "qwen2.5-7b", "own-critic")), "--gpus", "8"],
        ["--gpus", "5", "--rollout.max_tokens", "4096", "--engine.max_model_len", "8192"],
        ["--gpus", "9"],
        [*("--gpus", "2", "--engine.ranks", "1", "--loss.is_mode", "truncate", "--rollout.top_p", "1")],
    ],
    ids=["a critic on a server", "a server of its own", "an odd number of devices", "on three hosts", "two roles"],
)
def test_a_run_is_planned(words, capsys):
    assert main([*words, "--model.path", "Qwen/Qwen2.5-7B"]) in (0, 1)
    assert "in all" in capsys.readouterr().out


def test_the_command_names_what_to_lower(capsys):
    words = ["--model.path", "Qwen/Qwen2.5-7B", "--policy.dtype", "bfloat16", "--engine.dtype", "bfloat16"]
    assert main([*words, "--gpus", "1"]) == 1
    text = capsys.readouterr().out
    assert "It does not fit: " in text and "| --lora.rank 32 " in text
    assert main([*words, "--gpus", "8"]) == 0
    assert "It fits: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--device", "tpu"], "--device: found tpu, wanted one of h100, h200, a100, l40s, rtx4090, cpu"),
        (["--gpus", "8", "--nodes", "3"], "--nodes: found 3, wanted a divisor of --gpus (8)"),
        (["--gpus", "0"], "argument --gpus: found '0', wanted integer > 0"),
        (["--engine.tensor_parallel", "3", "--gpus", "8"], "engine.tensor_parallel: found 3"),
        (["--train.stepz", "3"], "train.stepz: unknown setting; did you mean train.steps?"),
        (["--model", "x", "--train.lr", "1"], "--model: found --train.lr with it, wanted only --context"),
        (["--response", "49"], "--response: found 49, wanted at most 48, by the run's settings"),
        (["--context", "4096"], "--context: wanted --model with it"),
        (["--model", "no/such/model"], "--model: no/such/model: no such model folder"),
    ],
)
def test_what_can_not_be_planned_is_one_line(words, line, capsys):
    assert main(words) == 2
    assert line in capsys.readouterr().err
