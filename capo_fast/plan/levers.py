"""Settings to lower if a run does not fit, in order: free ones first, those that change training last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from capo_fast.config.rules import PARTS, check_parts
from capo_fast.errors import ConfigError
from capo_fast.plan.hardware import GIB
from capo_fast.plan.job import TEMPLATE, Job
from capo_fast.plan.memory import room


@dataclass(frozen=True)
class Change:
    """One lowered setting."""

    key: str
    value: object
    saved: float
    """Bytes saved at the device's fullest moment"""
    cost: str


def in_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def lower(job: Job) -> tuple[Job, list[Change]]:
    """The job with the fewest changes that make it fit, in the order of `LADDER`; at its lowest if none do."""
    changes: list[Change] = []
    lowered = job
    while room(lowered) < 0:
        found = next(_helpful(lowered), None)
        if found is None:
            return lowered, changes
        lowered, change = found
        changes = [each for each in changes if each.key != change.key] + [change]
    return without_needless(job, changes)


def without_needless(job: Job, changes: list[Change]) -> tuple[Job, list[Change]]:
    """The changes without those that later ones made unnecessary, dropping the most expensive first."""
    for each in reversed(changes):
        fewer = [other for other in changes if other is not each]
        if room(_changed(job, fewer)) >= 0:
            changes = fewer
    return _changed(job, changes), in_order(job, changes)


def in_order(job: Job, changes: list[Change]) -> list[Change]:
    """The changes ordered so that each lowers the fullest moment after those before it, with its savings."""
    left, found = list(changes), list[Change]()
    while left:
        before = room(_changed(job, found))
        saves = {each.key: room(_changed(job, [*found, each])) - before for each in left}
        first = next((each for each in left if saves[each.key] > 0), left[0])
        left.remove(first)
        found.append(replace(first, saved=saves[first.key]))
    return found


def _changed(job: Job, changes: list[Change]) -> Job:
    return job.with_settings(**{each.key: each.value for each in changes})


def _helpful(job: Job) -> Iterator[tuple[Job, Change]]:
    """The next steps of the ladder that lower the fullest moment."""
    for lever, cost in LADDER:
        for key, value in lever(job):
            changed = accepted(job, key, value)
            if changed is not None and (saved := room(changed) - room(job)) > 0:
                yield changed, Change(key, value, saved, cost)


def accepted(job: Job, key: str, value: object) -> Job | None:
    """The job with another setting; None if a run would reject it."""
    with suppress(ConfigError):
        changed = job.with_settings(**{key: value})
        check_parts(changed.config, [part for part in map(PARTS.__getitem__, PLANNED) if part.used(changed.config)])
        return changed
    return None


PLANNED = ("frozen critic", "lora", "offload")
"""The parts of a run with rules on settings that are lowered here."""


def least_devices(job: Job) -> Job | None:
    """The same settings on the fewest devices on which they fit; None if 1,024 are too few."""
    return next((wider for wider in doubled(job) if room(wider) >= 0), None)


def doubled(job: Job) -> Iterator[Job]:
    """The job on repeatedly doubled devices in whole hosts, without numbers that a run would reject."""
    ranks, hosts = job.ranks, job.hosts
    while ranks <= 512:
        hosts = max(hosts, -(-2 * ranks // job.hardware.per_host))
        ranks = -(-2 * ranks // hosts) * hosts
        with suppress(ConfigError):
            yield replace(job, ranks=ranks, hosts=hosts)


# ---- the levers: next values of a setting, if there is a lower one ----

Values = Iterator[tuple[str, object]]


def fused(job: Job) -> Values:
    if job.config.train.optimizer == "adamw":
        yield "train.optimizer", "adamw-fused"


def cache_that_is_needed(job: Job) -> Values:
    if (needed := needed_cache(job)) < job.config.engine.kv_cache_gb:
        yield "engine.kv_cache_gb", needed


def needed_cache(job: Job) -> float:
    """GiB for all sequences that an engine decodes at once at their longest, at least 0.1 and the minimum of vLLM, one
    sequence of engine.max_model_len."""
    most, mine = job.config.engine.max_num_seqs, -(-job.rollouts // job.engines.count)
    tokens = max(min(most, mine) * job.longest, job.config.engine.max_model_len)
    if job.writes_critiques:
        votes, prompt = job.config.critic.votes, job.longest + TEMPLATE
        critiques = min(most, mine * job.critiques_each)
        tokens = max(tokens, -(-critiques // votes) * prompt + critiques * job.config.critic.max_tokens)
    return max(0.1, round(tokens * job.engines.cache_per_token / GIB + 0.05, 1))


def checkpointing(job: Job) -> Values:
    if not job.config.policy.gradient_checkpointing:
        yield "policy.gradient_checkpointing", 2
    if int(job.config.policy.gradient_checkpointing) != 1:
        yield "policy.gradient_checkpointing", True


def smaller_micro_batches(job: Job) -> Values:
    half = job.config.train.micro_tokens // 2
    if half >= job.longest // 2:  # a longer sequence gets its own micro-batch
        yield "train.micro_tokens", max(half, job.longest)


def wider_engines(job: Job) -> Values:
    yield "engine.tensor_parallel", 2 * job.config.engine.tensor_parallel


def smaller_cache(job: Job) -> Values:
    half = round(job.config.engine.kv_cache_gb / 2, 1)
    least = max(2 * job.longest, job.config.engine.max_model_len)
    if half * GIB >= least * job.engines.cache_per_token:
        yield "engine.kv_cache_gb", half


def smaller_server_cache(job: Job) -> Values:
    """Halves the cache down to one longest sequence, the minimum of vLLM."""
    if (servers := job.servers) is not None:
        half = round(servers.config.kv_cache_gb / 2, 1)
        if half * GIB >= servers.config.max_model_len * servers.cache_per_token:
            yield "critic.server.kv_cache_gb", half


def wider_shards(job: Job) -> Values:
    if job.shards < job.learners:
        yield "policy.shard", "all"


def offloaded_reference(job: Job) -> Values:
    if job.has_reference and not job.config.reference.offload:
        yield "reference.offload", True


def offloaded_optimizer(job: Job) -> Values:
    if not job.config.train.offload_optimizer:
        yield "train.offload_optimizer", True


def offloaded_activations(job: Job) -> Values:
    if job.recomputed == job.shape.layers and not job.config.policy.offload_activations:
        yield "policy.offload_activations", True


def eight_bits(job: Job) -> Values:
    if job.config.train.optimizer != "adamw-8bit":
        yield "train.optimizer", "adamw-8bit"


def adapter(job: Job) -> Values:
    if not job.is_lora:
        yield "lora.rank", 32


LADDER: tuple[tuple[Callable[[Job], Values], str], ...] = (
    (fused, "nothing"),
    (cache_that_is_needed, "nothing: a step's sequences need no more"),
    (checkpointing, "these layers' forward pass once more"),
    (smaller_micro_batches, "more, smaller products"),
    (wider_engines, "the ranks of an engine wait for each other at each layer"),
    (smaller_cache, "fewer sequences at once"),
    (smaller_server_cache, "fewer critiques at once"),
    (wider_shards, "weights cross the network between hosts in each pass"),
    (offloaded_reference, "its weights cross the bus in each pass"),
    (offloaded_optimizer, "moments cross the bus twice per update"),
    (offloaded_activations, "the layers' inputs cross the bus twice"),
    (eight_bits, "moments in 8 bits: other rounding"),
    (adapter, "trains an adapter, not all weights"),
)
"""Each lever with what it costs."""
