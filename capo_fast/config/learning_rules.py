"""Rules of the learner's settings: the adapter, credit, the loss, updates. `config/rules.py` has their conditions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from capo_fast.config.schema import Config

FUNCTION = re.compile(r"\w+(\.\w+)*:\w+")
"""`package.module:function`."""
Rules = Iterator[tuple[bool, str]]
"""Pairs (whether the rule is broken, message)."""


def lora(config: Config) -> Rules:
    targets = config.lora.targets
    yield not targets, "lora.targets: found none, wanted the names of linear layers"
    yield not all(map(str.strip, targets)), f"lora.targets: found an empty name in {','.join(targets)!r}"
    yield (
        (config.policy.dtype, config.engine.dtype) == ("bfloat16", "float32"),
        "policy.dtype: found bfloat16 with lora.rank and engine.dtype: float32, wanted float32: otherwise the adapter "
        "is trained on another base than the engine's",
    )


def offload(config: Config) -> Rules:
    yield (
        int(config.policy.gradient_checkpointing) != 1,
        "policy.offload_activations: found true, wanted false without policy.gradient_checkpointing: true: a layer "
        "that is not recomputed keeps far more than its input",
    )


def has_process_penalty(config: Config) -> bool:
    """Whether P is subtracted from the reward of wrong steps, so that the verdict's weight must exceed it."""
    return config.credit.process in ("steps", "answer-probability", "flawed-answers") or config.credit.fn is not None


def process(config: Config) -> Rules:
    outcome, process = config.credit.outcome_weight, config.credit.largest_process_weight
    name = "process_weight" if process == config.credit.process_weight else "process_start"
    yield (
        outcome <= process and not config.credit.allow_process_dominance,
        f"credit.{name}: found P = {process:g} with C = {outcome:g} (credit.outcome_weight), wanted C > P: "
        "otherwise a right answer with a wrong step does not beat a wrong answer with right steps, and the policy "
        "learns long, easy steps while accuracy falls; credit.allow_process_dominance: true accepts that",
    )


def credit_function(config: Config) -> Rules:
    name = config.credit.fn or ""
    yield FUNCTION.fullmatch(name) is None, f"credit.fn: found {name!r}, wanted package.module:function"


def judgment(config: Config) -> Rules:
    found = config.credit.when
    yield (
        found in ("wrong-answers", "right-answers"),
        f"credit.when: found {found} with credit.process: outcome, wanted always or mixed-groups: "
        f"{'right' if found == 'wrong-answers' else 'wrong'} answers without a judgment would be compared with "
        "answers that have one",
    )


def when(config: Config) -> Rules:
    """The critic would read rollouts for which its findings have no effect."""
    process, found = config.credit.process, config.credit.when
    useless = {"prefix": "right-answers", "flawed-answers": "wrong-answers"}
    yield (
        useless.get(process) == found and config.credit.fn is None,
        f"credit.when: found {found} with credit.process: {process}, wanted another: no step of these counts as wrong",
    )


def process_weight(config: Config) -> Rules:
    """For processes that have no effect without P."""
    credit = config.credit
    yield (
        credit.largest_process_weight == 0,
        f"credit.process_weight: found 0 with credit.process: {credit.process}, wanted more: 0 has a cost and no "
        "effect",
    )


def schedule(config: Config) -> Rules:
    yield (
        config.credit.norm == "separate",
        f"credit.schedule: found {config.credit.schedule} with credit.norm: separate, wanted constant: process rewards "
        "are divided by their own std, whatever P is",
    )


def token_credit(config: Config) -> Rules:
    """For built-in estimators of token advantages."""
    process, schedule = config.credit.process, config.credit.schedule
    yield (
        schedule != "constant",
        f"credit.schedule: found {schedule} with credit.process: {process}, wanted constant: it does not use P per "
        "step",
    )


def step_values(config: Config) -> Rules:
    reward = config.reward
    others = (
        ("reward.also", ",".join(reward.also), bool(reward.also), "none"),
        ("reward.format_bonus", f"{reward.format_bonus:g}", reward.format_bonus > 0, "0"),
        ("train.truncated", config.train.truncated, config.train.truncated == "penalise", "keep or mask"),
    )
    for key, found, broken, wanted in others:
        yield (
            broken,
            f"{key}: found {found} with credit.process: step-values, wanted {wanted}: its values use only verdicts",
        )


def bonus(config: Config) -> Rules:
    bonus, (gap, name) = config.reward.format_bonus, _answer_gap(config)
    yield (
        0 < bonus >= gap,
        f"reward.format_bonus: found {bonus:g}, wanted less than {name} = {gap:g}: "
        "otherwise the format outweighs the answer",
    )


def _answer_gap(config: Config) -> tuple[float, str]:
    """The smallest difference in reward between a right and a wrong answer, and its formula."""
    credit = config.credit
    if has_process_penalty(config):
        return credit.outcome_weight - credit.largest_process_weight, "C - P"
    if credit.process == "prefix":  # a right answer is never penalised, and a wrong one has half of C at most
        return credit.outcome_weight / 2, "C / 2"
    if credit.process == "outcome":
        judged = credit.verdict_scale + 0.5 - 1 / (1 + math.exp(-credit.judgment_scale))
        return credit.outcome_weight * judged, "C (beta + 1/2 - sigmoid(alpha))"
    return credit.outcome_weight, "C"


def ppo(config: Config) -> Rules:
    loss = config.loss
    yield (
        loss.dual_clip is not None and loss.dual_clip <= 1 + loss.clip_high,
        f"loss.dual_clip: found {loss.dual_clip}, wanted none or more than 1 + loss.clip_high = {1 + loss.clip_high:g}",
    )


def importance(config: Config) -> Rules:
    loss = config.loss
    yield (
        config.policy.old == "rollout" and config.has_old_logprobs,
        f"loss.is_mode: found {loss.is_mode}, wanted none with policy.old: rollout, with which the loss's own ratio is "
        "already the ratio to the engine's log-probs",
    )
    yield (
        loss.is_mode == "mask" and loss.is_high < loss.is_low,
        f"loss.is_high: found {loss.is_high}, wanted at least loss.is_low ({loss.is_low})",
    )


def reads_engine_logprobs(config: Config) -> bool:
    return config.loss.is_mode is not None or (config.policy.old == "rollout" and config.has_old_logprobs)


def engine_logprobs(config: Config) -> Rules:
    rollout, is_mode = config.rollout, config.loss.is_mode
    reader = "policy.old: rollout" if is_mode is None else f"loss.is_mode: {is_mode}"
    for key, found, off in (("top_p", rollout.top_p, 1), ("top_k", rollout.top_k, -1)):
        yield (
            found != off,
            f"rollout.{key}: found {found:g}, wanted {off} with {reader}: the engine's log-probs are normalised over "
            "the tokens that sampling keeps, the trainer's over all, so their ratio would be wrong",
        )


def carry(config: Config) -> Rules:
    """Rules of `rollout.carry`. Tokens of an earlier policy with ratio 1 would bias the gradient silently."""
    rollout, minibatches = config.rollout, config.train.minibatches
    smallest = rollout.prompts - rollout.may_stay_open
    yield (
        config.engine.ranks > 0 and rollout.max_staleness < 2,
        f"rollout.max_staleness: found {rollout.max_staleness}, wanted at least 2 with engine.ranks, where a "
        "carried rollout is two versions old in the step that trains on it",
    )
    yield (
        smallest > rollout.prompts,
        f"rollout.enough: found {smallest}, wanted at most rollout.prompts ({rollout.prompts})",
    )
    yield (
        minibatches > smallest,
        f"train.minibatches: found {minibatches}, wanted at most {smallest}, the groups of the smallest batch of "
        "rollout.carry (rollout.enough)",
    )
    yield (
        not reads_engine_logprobs(config),
        "rollout.carry: found true, wanted loss.is_mode: truncate or mask, or policy.old: rollout with several updates "
        "per step: otherwise tokens of earlier policies would be trained on as if the current one had sampled them",
    )


def train(config: Config) -> Rules:
    train, rollout = config.train, config.rollout
    yield (
        train.minibatches > rollout.prompts,
        f"train.minibatches: found {train.minibatches}, wanted at most rollout.prompts ({rollout.prompts}): "
        "groups are dealt whole",
    )
    yield (
        train.profile is not None and train.profile > train.steps,
        f"train.profile: found {train.profile}, wanted at most train.steps ({train.steps}): the run ends before",
    )


def penalty(config: Config) -> Rules:
    buffer, longest = config.train.overlong_buffer, config.rollout.max_tokens
    yield (
        buffer > longest,
        f"train.overlong_buffer: found {buffer}, wanted at most rollout.max_tokens ({longest})",
    )


def one_step_off(config: Config) -> Rules:
    found = f"engine.ranks: found {config.engine.ranks}, wanted 0"
    yield (
        not reads_engine_logprobs(config),
        f"{found}, or loss.is_mode: truncate or mask, or policy.old: rollout with several updates per step: rollouts "
        "are sampled by weights one version old, and would be trained on as if the current ones had sampled them",
    )
    yield (
        config.train.dynamic_sampling and config.swaps,
        f"{found} with train.dynamic_sampling and a frozen critic that replaces the policy's weights (without LoRA, or "
        "with engine.merge_lora): a further round of rollouts after its critiques would need weights that the learner "
        "has changed since",
    )
