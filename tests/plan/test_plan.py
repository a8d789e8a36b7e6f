"""Plans: the settings that they lower and recommend, and the printed page."""

from __future__ import annotations

import re
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import psutil
import pytest
import yaml

from capo_fast.config import load_config
from capo_fast.config.core_yaml import CoreLoader
from capo_fast.config.critic import GateConfig
from capo_fast.config.load import build_config, read_file
from capo_fast.errors import ConfigError
from capo_fast.plan import hardware
from capo_fast.plan.__main__ import main
from capo_fast.plan.hardware import NVIDIA
from capo_fast.plan.job import TEMPLATE, Job, Lengths
from capo_fast.plan.levers import lower
from capo_fast.plan.memory import host, moments, room
from capo_fast.plan.recommend import recommend, settings
from capo_fast.plan.seconds import stages, step_seconds
from capo_fast.plan.shapes import find_shape
from capo_fast.plan.text import time_lines
from capo_fast.rollout.requests import critique_room


def job(model: str = "qwen2.5-7b", ranks: int = 8, device: str = "h100", **values: object) -> Job:
    config = build_config({key.replace("__", "."): value for key, value in values.items()})
    return Job(config, find_shape(model), NVIDIA[device], ranks, -(-ranks // 8), Lengths(256, 1024, 512))


def test_a_run_that_does_not_fit_is_lowered_only_until_it_fits():
    planned = job(ranks=2)
    assert room(planned) < 0
    lowered, changes = lower(planned)
    assert room(lowered) >= 0
    assert sum(each.saved for each in changes) == pytest.approx(room(lowered) - room(planned))
    for each in changes:
        section, name = each.key.split(".")
        undone = lowered.with_settings(**{f"{section}__{name}": getattr(getattr(planned.config, section), name)})
        assert room(undone) < 0, f"{each.key} was lowered without need"


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


def test_engines_on_separate_ranks_have_no_memory_of_the_learner():
    separate = job(engine__ranks=4, loss__is_mode="truncate", rollout__top_p=1)
    assert separate.shards == separate.engines.count == 4
    assert "optimizer" not in moments(separate)["rollout"]
    assert "engine's weights" not in moments(separate)["sync"]
    assert step_seconds(separate) < sum(stages(separate).values())


def test_a_critic_of_single_steps_gets_ten_times_as_many_requests():
    """Both kinds of critique have the same length limit."""
    whole, steps = (
        job(critic__max_tokens=512, critic__step__max_tokens=512, critic__reads=reads) for reads in ("solution", "step")
    )
    assert (whole.critiques_each, steps.critiques_each) == (4, 40)
    assert 5 < stages(steps)["critique"] / stages(whole)["critique"] < 10
    assert "critic.gate" not in time_lines(steps)
    assert "critic.gate" in time_lines(steps.with_settings(critic__gate=GateConfig(groups="mixed")))


def test_a_critic_of_another_size_alternates_on_the_same_devices():
    """The paper's 72B critic with a 7B policy, on 8 devices."""
    settings = {"engine__tensor_parallel": 4, "policy__gradient_checkpointing": True, "critic__mode": "server"}
    planned = replace(job(**settings, critic__path="Qwen/Qwen2.5-72B"), critic=find_shape("qwen2.5-72b"))
    assert moments(planned)["critique"]["critic's weights"] == pytest.approx(2 * 72.7e9 / 8, rel=0.01)
    assert "engine's weights" not in moments(planned)["critique"]
    assert room(planned) > 0 and host(planned)["critic's weights, asleep"] == pytest.approx(2 * 72.7e9, rel=0.01)
    assert replace(planned, ranks=16, hosts=2).servers.count == 2, "one on each host"


def served(ranks: int = 8, device: str = "h100", **values: object) -> Job:
    """A job with a 72B critic on a server of its own."""
    settings = {"engine__tensor_parallel": 4, "policy__gradient_checkpointing": True, "critic__mode": "server"}
    planned = job(ranks=ranks, **settings, critic__path="Qwen/Qwen2.5-72B", **values)
    return replace(planned, critic=find_shape("qwen2.5-72b"), hardware=NVIDIA[device])


def test_a_critics_server_has_processes_of_its_own():
    alone, planned = job(engine__tensor_parallel=4), served()
    assert moments(planned)["update"]["CUDA and NCCL"] == moments(alone)["update"]["CUDA and NCCL"] + 2**30
    assert host(planned)["processes"] == host(alone)["processes"] + 10 * 1.5 * 2**30


def test_a_critics_server_that_does_not_fit_gets_a_smaller_cache():
    planned = served(critic__server__kv_cache_gb=60.0)
    assert room(planned) < 0
    lowered, changes = lower(planned)
    assert room(lowered) >= 0 and [each.key for each in changes] == ["critic.server.kv_cache_gb"]
    assert lowered.config.critic.server.kv_cache_gb < 60


def test_a_critics_server_is_on_one_host():
    with pytest.raises(ConfigError, match=r"^critic\.server\.tensor_parallel: found 16, wanted at most 8, the devices"):
        served(16, critic__server__tensor_parallel=16)


def test_the_devices_of_a_critics_server_divide_its_heads():
    planned = replace(job(critic__mode="server", critic__path="x"), critic=find_shape("qwen2.5-7b"))
    assert planned.servers.config.tensor_parallel == 4


def test_the_queries_of_an_estimator_take_time():
    """docs/credit.md: k (S - 1) L / 2 tokens of queries per rollout of L tokens."""
    plain, querying = (stages(job(algorithm="grpo", credit__process=each)) for each in ("none", "step-values"))
    assert querying["credit"] > 5 * plain["rollout"]
    frozen = stages(job(credit__process="critique-ratio"))
    assert frozen["credit"] > 0 and frozen["sync"] > 1.2 * stages(job())["sync"], "the policy is pushed twice"


def test_loading_a_critic_needs_more_host_memory_than_keeping_it_asleep():
    found, step = host(job("qwen2.5-32b", checkpoint__asynchronous=False)), 8 * 1.5 * 2**30
    assert sum(found.values()) == pytest.approx(step + 4 * 32.8e9, rel=0.01)


def test_host_memory_counts_only_the_ranks_that_use_it():
    values = {"engine__ranks": 8, "loss__is_mode": "truncate", "lora__rank": 8, "checkpoint__asynchronous": True}
    separate = job(ranks=16, **values)
    assert "engine's weights, asleep" not in host(separate), "engines on ranks of their own never sleep"
    narrow, wide = (
        host(job("qwen2.5-32b", checkpoint__asynchronous=True, critic__mode="self", train__optimizer=each))
        for each in ("adamw-8bit", "adamw")
    )
    assert narrow["a checkpoint's copy"] < wide["a checkpoint's copy"] / 1.9


def test_an_offloaded_reference_takes_time():
    assert stages(job(reference__offload=True))["learn"] > stages(job())["learn"]


def test_no_lever_gives_a_refused_setting():
    """An adapter requires its base as critic, and 12 devices cannot share moments in 8 bits."""
    planned = job("qwen2.5-72b", ranks=12, critic__path="x")
    lowered, _ = lower(planned)
    assert room(lowered) < 0 and not lowered.is_lora and lowered.config.train.optimizer != "adamw-8bit"


@pytest.mark.parametrize("found", ["1000000", "max"])
def test_memory_is_limited_by_the_container(found, tmp_path, monkeypatch):
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
    ("model", "ranks", "device"), [("qwen2.5-7b", 2, "h100"), ("qwen3-8b", 1, "h200"), ("llama-3.1-70b", 64, "a100")]
)
def test_a_recommendation_fits_and_is_a_file_of_settings(model, ranks, device, tmp_path):
    planned, changes = recommend(find_shape(model), 8192, NVIDIA[device], ranks, -(-ranks // 8))
    assert room(planned) >= 0
    assert all(each.value == attrgetter(each.key)(planned.config) for each in changes)
    (tmp_path / "run.yaml").write_text(settings(planned))
    words = ["--config", str(tmp_path / "run.yaml"), "--data.path", "x.jsonl", "--device", device, "--gpus", str(ranks)]
    assert main(words) == 0


@pytest.mark.parametrize("algorithm", ["capo", "capo-gated"])
@pytest.mark.parametrize(("context", "positions"), [(1024, None), (4096, None), (8192, None), (4096, 4096)])
def test_a_recommendation_has_room_for_the_critique_of_a_longest_rollout(context, positions, algorithm):
    shape = replace(find_shape("qwen2.5-1.5b"), positions=positions)
    config = recommend(shape, context, NVIDIA["h100"], 8, 1, {"algorithm": algorithm})[0].config
    prompt = context // 4 if context < 4096 else 1024
    assert critique_room(config) >= prompt + config.rollout.max_tokens + TEMPLATE
    assert config.rollout.max_tokens == context - prompt or config.engine.max_model_len == positions


def test_a_recommended_cache_holds_one_longest_sequence():
    """vLLM refuses a smaller one."""
    planned, _ = recommend(find_shape("qwen2.5-1.5b"), 8192, NVIDIA["h100"], 192, 24, {"algorithm": "grpo"})
    tokens = planned.config.engine.kv_cache_gb * 2**30 / planned.engines.cache_per_token
    assert tokens >= planned.config.engine.max_model_len


def test_a_model_with_too_few_positions_for_a_critique_is_refused():
    shape = replace(find_shape("qwen2.5-1.5b"), positions=512)
    with pytest.raises(ConfigError, match=r"^--model: found .* with 512 positions, wanted more than 556 for"):
        recommend(shape, 512, NVIDIA["h100"], 8, 1)
    assert recommend(shape, 512, NVIDIA["h100"], 8, 1, {"algorithm": "grpo"})[0].config.rollout.max_tokens == 384


@pytest.mark.parametrize("name", ["123", "#1", "a: b", "1e6", "0o17"])
def test_recommended_settings_are_yaml_for_any_folder_name(name):
    planned, _ = recommend(replace(find_shape("qwen2.5-1.5b"), name=name), 4096, NVIDIA["h100"], 8, 1)
    assert yaml.load(settings(planned), Loader=CoreLoader)["model.path"] == name


@pytest.mark.parametrize("words", [["--gpus", "8"], ["--gpus", "1", "--algorithm", "grpo"]], ids=["fits", "lowered"])
def test_the_output_of_a_recommendation_is_a_file_of_settings(words, capsys, tmp_path):
    main(["--model", "Qwen/Qwen2.5-7B", *words])
    text = capsys.readouterr().out
    (tmp_path / "plan.yaml").write_text(text)
    config = load_config(["--config", str(tmp_path / "plan.yaml"), "--data.path", "x.jsonl"])
    assert (config.algorithm, config.rollout.max_tokens) == ("grpo" if "grpo" in words else "capo", 3072)
    assert "# It fits: " in text and ("--lora.rank" in text) == ("1" in words)


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


def test_the_command_names_the_settings_to_lower(capsys):
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
        (["--model", "x", "--train.lr", "1"], "--model: found --train.lr with it, wanted only --algorithm"),
        (["--response", "49"], "--response: found 49, wanted at most 48, by the run's settings"),
        (["--context", "4096"], "--context: wanted --model with it"),
        (["--model", "no/such/model"], "--model: no/such/model: no such model folder"),
    ],
)
def test_an_impossible_plan_is_a_one_line_error(words, line, capsys):
    assert main(words) == 2
    assert line in capsys.readouterr().err


def test_the_table_of_devices_and_prompts_in_the_page_is_predicted():
    page = (Path(__file__).parents[2] / "docs/plan.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+)[^|]*((?:\| [\d.]+ ){4})\|$", page, re.MULTILINE)
    assert len(rows) == 4
    for ranks, prompts, seconds in rows:
        file = read_file("pkg://capo_fast.configs/qwen2.5-1.5b-1x80gb.yaml")
        config = build_config(file, {"rollout.prompts": int(prompts)})
        lengths = Lengths(256, config.rollout.max_tokens // 2, config.critic.max_tokens // 2)
        planned = Job(config, find_shape(config.model.path), NVIDIA["h100"], int(ranks), 1, lengths)
        predicted = [*(stages(planned)[name] for name in ("rollout", "critique", "learn")), step_seconds(planned)]
        assert [f"{float(each):.3g}" for each in seconds.split("|")[1:]] == [f"{each:.3g}" for each in predicted]
