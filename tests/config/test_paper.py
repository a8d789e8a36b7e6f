"""configs/paper: the paper's hyper-parameters, repeated here, and the commands of its page."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from capo_fast.config import load_config
from capo_fast.config.arguments import load_sft_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/paper"
POLICIES = {
    "llama-3-1b": (5e-8, "intersection", "math_train.jsonl"),
    "llama-3-3b": (2e-8, "majority", "dapo_math.jsonl"),
    "qwen2.5-1.5b": (1e-7, "intersection", "math_train.jsonl"),
    "qwen2.5-7b": (2e-8, "majority", "dapo_math.jsonl"),
}
ARMS = {"grpo": "none", "grpo_genorm": "outcome", "capo": "steps"}


@pytest.mark.parametrize("algorithm", ARMS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_arm_loads_on_every_policy_with_the_paper_s_settings(policy, algorithm):
    files = ["common", policy, *(["genorm"] if algorithm == "grpo_genorm" else [])]
    paths = [str(FOLDER / f"{name}.yaml") for name in files]
    config = load_config(["--config", *paths, "--algorithm", algorithm, "--endpoint.url", "http://host/v1"])
    assert (config.train.lr, config.critic.voting, config.data.path) == POLICIES[policy]
    rollout, critic = config.rollout, config.critic
    assert (rollout.prompts * rollout.n, rollout.n, rollout.temperature, rollout.top_p) == (192, 16, 0.7, 0.9)
    assert (critic.votes, critic.temperature, critic.top_p, critic.max_tokens) == (4, 0.7, 0.9, 2048)
    assert (config.train.epochs, config.train.schedule, config.loss.kl_coef) == (4, "cosine", 0.01)
    assert config.credit.process == ARMS[algorithm]
    if algorithm == "capo":
        assert (config.credit.outcome_weight, config.credit.process_weight, config.credit.norm) == (2, 1, "group-token")


def test_every_command_of_the_page_loads_and_names_existing_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("capo ")]
    load = {"train": load_config, "sft": load_sft_config}
    configs = [load[command](rest[2:]) for _, command, *rest in commands if rest[0] == "--nproc"]
    assert [config.algorithm for config in configs] == ["sft", "sft", "grpo", "grpo_genorm", "capo", "capo"]
    assert configs[-1].serves_critic
    assert {(config.train.lr, config.train.batch) for config in configs[:2]} == {(1e-5, 80)}
