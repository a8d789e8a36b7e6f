"""Seconds of a step by stage, from a roofline: work over what the hardware can do, times the shares of `hardware.py`.

A prediction of order, not of percent: it has no tail of the verifier, no launch overheads of the learner and no noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from capo_fast.plan.hardware import GEMMS, GIB, LINK, MEMORY
from capo_fast.plan.job import TEMPLATE, Job
from capo_fast.plan.memory import cache_per_token, engine_weights, optimizer


def stages(job: Job) -> dict[str, float]:
    """By the names of `time/*` in a run's metrics."""
    found = {"rollout": rollout(job)}
    if job.asks_here:
        found["critique"] = critique(job)
    return found | {"sync": sync(job), "learn": learn(job)}


def step_seconds(job: Job) -> float:
    """Where engines are on ranks of their own, a step is as long as the longer side."""
    found = stages(job)
    learns = found["sync"] + found["learn"]
    return max(learns, sum(found.values()) - learns) if job.apart else sum(found.values())


# ---- the engine ----


def rollout(job: Job) -> float:
    prompts = job.config.rollout.prompts * job.lengths.prompt
    answers = Answers(job.rollouts, job.lengths.prompt, job.lengths.response, job.config.rollout.max_tokens)
    return prefill(job, prompts) + decode(job, answers)


def critique(job: Job) -> float:
    """Of all rollouts; votes share the prompt."""
    engines, config = job.server or job, job.config
    prompt = job.lengths.prompt + job.lengths.response + TEMPLATE
    answers = Answers(job.rollouts * config.critic.votes, prompt, job.lengths.critique, config.critic.max_tokens)
    return prefill(engines, job.rollouts * prompt) + decode(engines, answers)


class Answers(NamedTuple):
    """What all engines write: tokens of a prompt, of the mean answer and of the longest one."""

    number: int
    prompt: int
    mean: int
    longest: int


def prefill(job: Job, tokens: int) -> float:
    """Prompts on all engines: two FLOPs per parameter and token."""
    rate = job.engines * job.config.engine.tensor_parallel * job.device.flops(job.config.engine.dtype)
    return 2 * job.shape.total * tokens / (rate * GEMMS)


def decode(job: Job, answers: Answers) -> float:
    """A batch that is always full until the mean length of the last ones, and then the longest answer alone."""
    mine = -(-answers.number // job.engines)
    running = running_sequences(job, answers)
    full = engine_step(job, running, answers.prompt + answers.mean / 2)
    alone = engine_step(job, 1, answers.prompt + answers.longest)
    return mine / running * answers.mean * full + max(0, answers.longest - answers.mean) * alone


def running_sequences(job: Job, answers: Answers) -> float:
    """Sequences that one engine decodes at once: what its settings and its cache hold."""
    tokens = job.config.engine.kv_cache_gb * GIB / cache_per_token(job)
    mine = -(-answers.number // job.engines)
    return max(1, min(mine, job.config.engine.max_num_seqs, tokens / (answers.prompt + answers.mean)))


def engine_step(job: Job, sequences: float, context: float) -> float:
    """One token of each: the weights and the cache are read, and two FLOPs per parameter and sequence are done."""
    device, slices = job.device, job.config.engine.tensor_parallel
    read = engine_weights(job) + sequences * context * cache_per_token(job)
    flops = 2 * job.shape.total * sequences / slices
    return device.engine_step_s + max(
        read / (device.bandwidth * MEMORY), flops / (device.flops(job.config.engine.dtype) * GEMMS)
    )


def sync(job: Job) -> float:
    """A push of the policy, and of a critic that takes its place: each weight is gathered in float32, cast, summed up
    and written."""
    shape, device = job.shape, job.device
    adapter = job.is_lora and not job.config.merges
    pushed = job.trained if adapter else shape.total
    gather = 4 * pushed / (job.learner_link * LINK) if job.shards > 1 else 0
    local = 4 * pushed * job.engine_bytes / (device.bandwidth * MEMORY)
    swap = shape.total * job.engine_bytes / (device.host_link * LINK) if job.config.swaps else 0
    return gather + local + swap


# ---- the learner ----


def learn(job: Job) -> float:
    products, moves = compute(job), communication(job)
    passes = products + moves if job.device.on_cpu else max(products, moves)  # only a GPU does both at once
    return passes + job.updates * update(job) + offloading(job)


def compute(job: Job) -> float:
    """All passes. Layers that are computed again cost another forward pass."""
    size, epochs = job.shape.work(job.config.lora), job.config.train.epochs
    again = replace(size, head=0).flops(job.passes(epochs), False) * job.recomputed / job.shape.layers
    flops = size.flops(job.passes(job.forwards), False) + size.flops(job.passes(epochs), True) + again
    return flops / (job.learners * job.device.flops(job.config.policy.dtype) * GEMMS)


def communication(job: Job) -> float:
    """FSDP2 gathers all weights in each pass of a micro-batch, the layers' once more in its backward pass, and reduces
    the gradients in float32; copies on several hosts sum up theirs once per update."""
    copies = job.learners / job.shards
    between_copies = 8 * job.updates * job.trained / job.shards * (copies - 1) / copies / (job.device.network * LINK)
    if job.shards == 1:
        return between_copies
    shape, c = job.shape, job.compute_bytes
    forward = shape.total * c
    backward = shape.layers * shape.layer * c + 4 * job.trained
    minibatches = job.config.train.minibatches * job.micro_batches
    sent = minibatches * (job.forwards * forward + job.config.train.epochs * (forward + backward))
    return sent * (job.shards - 1) / job.shards / (job.learner_link * LINK) + between_copies


def update(job: Job) -> float:
    """Weights and two moments are read and written, gradients are read."""
    moved = 7 * 4 * job.trained / job.shards / (job.device.bandwidth * MEMORY)
    offload = job.config.train.offload_optimizer and not job.device.on_cpu
    return moved + (2 * optimizer(job) / (job.device.host_link * LINK) if offload else 0)


def offloading(job: Job) -> float:
    """Inputs of layers go to the host and come back."""
    if not job.config.policy.offload_activations or job.device.on_cpu:
        return 0.0
    tokens = job.passes(job.config.train.epochs).tokens / job.learners
    return 2 * tokens * job.recomputed * job.shape.hidden * job.compute_bytes / (job.device.host_link * LINK)
