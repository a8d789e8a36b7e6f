"""The tables of docs/plan.md: `python -m capo_fast.plan.page` prints them."""

from __future__ import annotations

from capo_fast.config.load import build_config, read_file
from capo_fast.markdown import markdown_table
from capo_fast.plan.hardware import FREE, GEMMS, GIB, LINK, MEMORY, NVIDIA
from capo_fast.plan.job import Job, Lengths
from capo_fast.plan.levers import in_yaml, lower
from capo_fast.plan.memory import room, totals
from capo_fast.plan.seconds import step_seconds
from capo_fast.plan.shapes import find_shape

POLICIES = {
    "llama-3-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
}
"""The files of configs/paper, and the models that they start from."""
COUNTS = (1, 8, 64)
DEVICES = ("h100", "h200")


def paper_table() -> str:
    """The paper's four policies with its settings, on hardware that none of them has run on here."""
    head = ["policy", "devices", "fullest moment", "GiB of it", "to use", "lowered to fit", "s per step"]
    rows = [row(policy, device, count) for policy in POLICIES for device in DEVICES for count in COUNTS]
    return markdown_table(head, rows, right={"GiB of it", "to use", "s per step"})


def row(policy: str, device: str, count: int) -> list[str]:
    job = paper_job(policy, device, count)
    lowered, changes = lower(job)
    total = totals(lowered)
    fullest = max(total, key=lambda name: total[name])
    words = ", ".join(f"`{each.key}: {in_yaml(each.value)}`" for each in changes) or "nothing"
    if room(lowered) < 0:
        words += "; it still does not fit"
    size, limit = (f"{value / GIB:.1f}" for value in (total[fullest], FREE * job.device.memory))
    return [policy, f"{count} x {device.upper()}", fullest, size, limit, words, f"{step_seconds(lowered):.0f}"]


def paper_job(policy: str, device: str, count: int) -> Job:
    files = (f"pkg://capo_fast.configs/paper/{name}.yaml" for name in ("common", policy))
    config = build_config(*map(read_file, files))
    shape, hardware = find_shape(POLICIES[policy]), NVIDIA[device]
    lengths = Lengths(256, config.rollout.max_tokens // 2, config.critic.max_tokens // 2)
    return Job(config, shape, hardware, count, -(-count // hardware.per_host), lengths)


def hardware_table() -> str:
    """What is known of each device."""
    head = ["device", "GiB", "TFLOP/s bfloat16", "TB/s", "GB/s to a device", "to the host", "to other hosts", "source"]
    rows = [
        [
            each.name,
            f"{each.memory / GIB:.1f}",
            f"{each.peaks[0] / 1e12:.0f}",
            f"{each.bandwidth / 1e12:.2f}",
            *(f"{speed / 1e9:g}" for speed in (each.link, each.host_link, each.network)),
            each.source,
        ]
        for each in NVIDIA.values()
    ]
    return markdown_table(head, rows, right=set(head[1:-1]))


def shares() -> str:
    return f"{GEMMS:g} of the FLOP/s, {MEMORY:g} of the memory's and {LINK:g} of a link's bytes per second"


if __name__ == "__main__":
    print(hardware_table())
    print(paper_table())
