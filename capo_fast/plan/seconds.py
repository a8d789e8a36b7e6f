"""Seconds of a step by stage, from a roofline: work over the hardware's peak times the fractions of `hardware.py`.

It predicts the order of magnitude: it ignores the verifier's tail, launch overheads of the learner and noise.
"""

from __future__ import annotations

from dataclasses import replace

from capo_fast.plan.engines import Answers, Engines
from capo_fast.plan.hardware import GEMMS, LINK, MEMORY
from capo_fast.plan.job import STEPS, TEMPLATE, Job
from capo_fast.plan.memory import optimizer, reference

ANSWER = 32
"""[us] Tokens of a reference answer, with the tokens before it in a partial block of the cache."""


def stages(job: Job) -> dict[str, float]:
    """Seconds by the names of `time/*` in a run's metrics."""
    found = {"rollout": rollout(job)}
    if job.critics is not None:
        found["critique"] = critique(job, job.critics)
    if job.asks_policy:
        found["credit"] = credit(job)
    return found | {"sync": sync(job), "learn": learn(job)}


def step_seconds(job: Job) -> float:
    """Seconds of a step; with engines on separate ranks the longer side counts."""
    found = stages(job)
    learns = found["sync"] + found["learn"]
    return max(learns, sum(found.values()) - learns) if job.separate_engines else sum(found.values())


# ---- the engines ----


def rollout(job: Job) -> float:
    lengths, config = job.lengths, job.config.rollout
    answers = Answers(job.rollouts, lengths.prompt, lengths.response, config.max_tokens)
    return job.engines.answer(answers, config.prompts * lengths.prompt)


def critique(job: Job, critics: Engines) -> float:
    """Critiques of all rollouts; votes share the prompt. A critique of a step has half a response in its prompt."""
    critic, by_step = job.config.critic, job.config.critic.reads == "step"
    prompt = job.lengths.prompt + job.lengths.response // (2 if by_step else 1) + TEMPLATE
    answers = Answers(job.rollouts * job.critiques_each, prompt, job.lengths.critique, critic.max_tokens)
    return critics.answer(answers, job.rollouts * job.judged_each * prompt)


def credit(job: Job) -> float:
    """Policy queries of the estimator of credit.process: the tokens are those of docs/credit.md."""
    lengths, settings = job.lengths, job.config.credit
    if settings.process == "step-values":
        half = lengths.response // 2
        number = job.rollouts * settings.continuations * (STEPS - 1)
        answers = Answers(number, lengths.prompt + half, half, job.config.rollout.max_tokens)
        return job.engines.answer(answers, job.rollouts * (lengths.prompt + lengths.response))
    twice = 2 * (lengths.prompt + lengths.response) + lengths.critique
    read = {"answer-probability": STEPS * ANSWER, "critique-ratio": twice}
    return job.engines.prefill(job.rollouts * read[settings.process])


def sync(job: Job) -> float:
    """Pushes of the policy, and of a swapped-in critic: each weight is gathered in float32, cast, checksummed and
    written. With an estimator that queries the policy after such critiques the policy is pushed twice."""
    shape, device = job.shape, job.device
    adapter = job.is_lora and not job.config.merges
    pushed = job.trained if adapter else shape.total
    gather = 4 * pushed / (job.learner_link * LINK) if job.shards > 1 else 0
    local = 4 * pushed * job.engines.bytes / (device.bandwidth * MEMORY)
    swap = shape.total * job.engines.bytes / (device.host_link * LINK) if job.config.swaps else 0
    again = job.asks_policy and (job.config.swaps or job.config.serves_critic)
    return (2 if again else 1) * (gather + local) + swap


# ---- the learner ----


def learn(job: Job) -> float:
    products, moves = compute(job), communication(job)
    passes = products + moves if job.device.on_cpu else max(products, moves)  # only a GPU overlaps them
    return passes + job.updates * update(job) + offloading(job)


def compute(job: Job) -> float:
    """All passes. A recomputed layer costs another forward pass."""
    size, epochs = job.shape.work(job.config.lora), job.config.train.epochs
    again = replace(size, head=0).flops(job.passes(epochs), False) * job.recomputed / job.shape.layers
    flops = size.flops(job.passes(job.forwards), False) + size.flops(job.passes(epochs), True) + again
    return flops / (job.learners * job.device.flops(job.config.policy.dtype) * GEMMS)


def communication(job: Job) -> float:
    """FSDP2 gathers all weights in each pass of a micro-batch, the layers' once more in its backward pass, and reduces
    the gradients in float32; copies on several hosts sum their gradients once per update."""
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
    """Reads and writes weights and two moments, reads gradients."""
    moved = 7 * 4 * job.trained / job.shards / (job.device.bandwidth * MEMORY)
    offload = job.config.train.offload_optimizer and not job.device.on_cpu
    return moved + (2 * optimizer(job) / (job.device.host_link * LINK) if offload else 0)


def offloading(job: Job) -> float:
    """Transfers of layer inputs to the host and back, and of the reference's shard for each micro-batch."""
    if job.device.on_cpu:
        return 0.0
    moved, train = 0.0, job.config.train
    if job.config.policy.offload_activations:
        tokens = job.passes(train.epochs).tokens / job.learners
        moved += 2 * tokens * job.recomputed * job.shape.hidden * job.compute_bytes
    if job.config.reference.offload and job.has_reference:
        moved += train.minibatches * job.micro_batches * reference(job)
    return moved / (job.device.host_link * LINK)
