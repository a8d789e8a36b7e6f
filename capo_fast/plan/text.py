"""A plan as text: a table of bytes by moment and part, seconds by stage, and the settings to lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capo_fast.config.critic import GateConfig
from capo_fast.markdown import markdown_table
from capo_fast.plan.hardware import FREE, GIB
from capo_fast.plan.job import Job
from capo_fast.plan.levers import Change, in_yaml, least_devices, lower
from capo_fast.plan.memory import host, moments, room, totals
from capo_fast.plan.seconds import stages, step_seconds


def plan_text(job: Job) -> str:
    """The whole plan, with the settings to lower if it does not fit."""
    parts = [title(job), memory_table(job), host_line(job), time_lines(job), *_verdict(job)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def title(job: Job) -> str:
    hosts = "one host" if job.hosts == 1 else f"{job.hosts} hosts"
    return f"{job.shape.name} on {job.ranks} x {job.hardware.name}, {hosts}: a prediction, not a measurement"


def memory_table(job: Job) -> str:
    """GiB per device: a row per part, a column per moment."""
    found = moments(job)
    names = list(dict.fromkeys(name for parts in found.values() for name in parts))
    rows = [[name, *(_gib(parts.get(name)) for parts in found.values())] for name in names]
    rows.append(["in all", *(_gib(total) for total in totals(job).values())])
    return markdown_table(["GiB per device", *found], rows, right=set(found), padded=True)


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / GIB:.2f}"


def host_line(job: Job) -> str:
    found = host(job)
    parts = ", ".join(f"{name} {_gib(value)}" for name, value in found.items())
    return f"host memory, GiB per host: {_gib(sum(found.values()))} ({parts})"


def time_lines(job: Job) -> str:
    seconds = ", ".join(f"{name} {value:.3g}" for name, value in stages(job).items())
    return (
        f"seconds per step: {step_seconds(job):.3g} ({seconds}){elsewhere(job)}\n"
        f"of {job.rollouts:,} rollouts of {job.lengths.response:,} tokens on average, "
        f"{job.config.rollout.max_tokens:,} at most, after prompts of {job.lengths.prompt:,}"
    )


def elsewhere(job: Job) -> str:
    """Work that the stages leave out."""
    critiques = "; a server writes the critiques" if job.config.has_critic and job.critics is None else ""
    if job.critics is not None and job.config.critic.gate != GateConfig():
        critiques = "; critiques that critic.gate leaves out are counted"
    function = job.config.credit.fn
    return critiques + (f"; queries of {function} to the engine are unknown" if function else "")


def _verdict(job: Job) -> Iterator[str]:
    total = totals(job)
    fullest = max(total, key=lambda name: total[name])
    if room(job) >= 0:
        yield f"It fits: {_gib(room(job))} GiB are left in `{fullest}`, of {_gib(FREE * job.device.memory)} to use."
        return
    wanted, there = _gib(total[fullest]), _gib(total[fullest] + room(job))
    yield f"It does not fit: `{fullest}` needs {wanted} GiB of {there} to use. Lower, in this order:"
    lowered, changes = lower(job)
    yield changes_table(changes)
    yield after_changes(lowered)
    if enough := least_devices(job):
        yield f"As it is, it fits on {enough.ranks} devices."


def changes_table(changes: Sequence[Change]) -> str:
    rows = [[f"--{each.key} {in_yaml(each.value)}", _gib(each.saved), each.cost] for each in changes]
    return markdown_table(["setting", "saves GiB", "costs"], rows, right={"saves GiB"}, padded=True)


def after_changes(job: Job) -> str:
    if room(job) < 0:
        return f"Even so {_gib(-room(job))} GiB are missing: more or larger devices, or a lower rollout.max_tokens."
    return f"Then it fits, with {_gib(room(job))} GiB left, in {step_seconds(job):.3g} s per step."
