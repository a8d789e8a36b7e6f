"""A learner on fixed samples, also on several ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from scripted_world import MODEL, answer, tokenizer

from capo_fast.config.schema import Config, LossConfig, PolicyConfig, RolloutConfig, TrainConfig
from capo_fast.credit.assign import assign_credit
from capo_fast.credit.steps import step_spans
from capo_fast.engine.checksum import checksum
from capo_fast.exchange.columns import Columns, Share
from capo_fast.policy.batch import pack_plan, plan_updates
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.learner import Learner
from capo_fast.policy.loading import load_policy
from capo_fast.policy.lora import BasePolicy
from capo_fast.policy.manifest import RUN_SECTIONS
from capo_fast.policy.model import full_weights, load_model
from capo_fast.policy.sync import freeze_critic
from capo_fast.records import CreditedSample, Prompt, Request, Rollout, Sample
from capo_fast.runtime.mesh import policy_mesh
from capo_fast.runtime.ranks import gather, ranks

TRAIN = TrainConfig(steps=4, epochs=1, minibatches=1, lr=1e-3, schedule="constant", grad_clip=1e9)


STEP = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=replace(TRAIN, epochs=2, minibatches=3, micro_tokens=40),
    rollout=RolloutConfig(temperature=1.0),
)
"""A step of two passes with three updates each."""


def make_sample(group: int, i: int) -> Sample:
    question = ["9*2-9-9+9", "3+4*2", "1-5+2*7*3-4"][group]
    prompt_ids = tuple(tokenizer().encode(question + "\n", add_special_tokens=False))
    completion = answer(Request("", prompt_ids, 10 * group + i, 1.0, 1.0, -1, 64))
    steps = step_spans(completion.token_ids, tokenizer())
    rollout = Rollout(
        Prompt(question, question, "0", None, prompt_ids),
        group,
        i,
        0,
        completion.token_ids,
        completion.logprobs,
        completion.text,
        True,
        steps,
    )
    wrong = tuple(float((i + k) % 3 == 0) for k in range(len(steps.texts)))
    return Sample(rollout, outcome=float(i % 2), critiques=(), step_wrong=wrong)


SAMPLES = assign_credit([make_sample(group, i) for group in range(3) for i in range(4)], Config())


def all_right(sample: Sample) -> Sample:
    return replace(sample, outcome=1.0, step_wrong=(0.0,) * len(sample.step_wrong))


WITHOUT_GRADIENT = assign_credit([all_right(sample.sample) for sample in SAMPLES], Config())
"""The same samples with all answers right: every advantage is 0."""
PARTLY_LIVE = [*SAMPLES[:8], *WITHOUT_GRADIENT[8:]]
"""Two groups with a gradient and one without."""


def make_learner(config: Config) -> Learner:
    """A learner of `config`. With LoRA it trains an adapter, and its base is the reference."""
    mesh = policy_mesh("cpu", config.policy.shard)
    policy = load_policy(MODEL, config, torch.device("cpu"), mesh)
    return Learner(policy, BasePolicy(policy) if config.lora.rank > 0 and config.loss.kl_coef > 0 else None, config)


def with_plain_gradient_steps(learner: Learner) -> Learner:
    """Use SGD: Adam divides by the gradient's size, so rounding noise in entries near 0 would become a full step."""
    trainable = [parameter for parameter in learner.policy.parameters() if parameter.requires_grad]
    learner.optimizer = torch.optim.SGD(trainable, lr=0.02)
    return learner


def train(learner: Learner, config: Config) -> dict[str, float]:
    share, rank, world = Share.of(SAMPLES), dist.get_rank(), dist.get_world_size()
    plans = plan_updates(share.figures, share.prompts, config, world)
    return learner.train_batch([pack_plan(plan, share, config, rank, world) for plan in plans])


def share_of(samples: Sequence[CreditedSample]) -> Share:
    """This rank's share, as if each rank had sampled every `world`-th group."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = [each for each in samples if each.rollout.group % world == rank]
    return replace(Share.of(samples), columns=Columns.of(mine))


def resave(config: Config, source: Path, target: Path) -> None:
    """Load the newest checkpoint of a folder on these ranks, and save it again to another folder."""
    with ranks():
        learner = make_learner(config)
        checkpoint, _ = Checkpointer(source, keep=1).newest_whole()
        checkpoint.load(learner)
        Checkpointer(target, keep=1).save(1, learner, dict.fromkeys(RUN_SECTIONS))


def main(out: Path) -> None:
    with ranks():
        write_steps(out)


def save_step(out: Path) -> None:
    """Train one step without LoRA; save its state as a checkpoint in `out` and its metrics in `out/metrics.json`."""
    with ranks():
        learner = with_plain_gradient_steps(make_learner(STEP))
        metrics = learner.train(share_of(PARTLY_LIVE))
        Checkpointer(out, keep=1).save(1, learner, dict.fromkeys(RUN_SECTIONS))
        if dist.get_rank() == 0:
            (out / "metrics.json").write_text(json.dumps(metrics))


def write_steps(out: Path) -> None:
    """Write the weights after a step by LoRA rank (0: no LoRA) to a file; metrics and the ranks' critics to another.

    Without LoRA, one of the three updates has no rollout with a gradient.
    """
    weights, metrics = {}, {}
    for rank in (0, 4):
        config = replace(STEP, lora=replace(STEP.lora, rank=rank), loss=LossConfig(kl_coef=0.1 if rank else 0.0))
        learner = with_plain_gradient_steps(make_learner(config))
        metrics[rank] = learner.train(share_of(SAMPLES if rank else PARTLY_LIVE))
        weights[rank] = {name: weight.clone() for name, weight in full_weights(learner.policy, torch.float32)}
    critic = freeze_critic(lambda: load_model(MODEL, "sdpa"), [(5, 6, 7)], torch.float32)
    dist.barrier()  # the first rank deletes the file, perhaps after the others have returned
    sums = [checksum(weight) for weight in (*critic.weights.values(), critic.probe_logprobs)]
    maps = Path("/proc/self/maps").read_text().splitlines()
    [mapped] = {line.split(maxsplit=5)[5] for line in maps if "weights.safetensors" in line}
    critics = gather([[sums, mapped]])
    if dist.get_rank() == 0:
        torch.save(weights, out)
        found = {"metrics": metrics, "critics": critics, "left": Path(mapped).parent.exists()}
        out.with_suffix(".json").write_text(json.dumps(found))
