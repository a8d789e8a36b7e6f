"""The tables of docs/plan.md: `python -m capo_fast.plan.page` prints them."""

from __future__ import annotations

from capo_fast.config.load import build_config, read_file
from capo_fast.markdown import markdown_table
from capo_fast.plan.hardware import FREE, GEMMS, GIB, LINK, MEMORY, NVIDIA
from capo_fast.plan.job import TYPICAL_PROMPT, Job, Lengths, fewest_hosts
from capo_fast.plan.levers import in_yaml, lower
from capo_fast.plan.memory import moments, room, totals
from capo_fast.plan.seconds import learn, step_seconds
from capo_fast.plan.shapes import find_shape

POLICIES = {
    "llama-3-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
}
"""The files of configs/paper and their base models."""
COUNTS = (1, 8, 64)
DEVICES = ("h100", "h200")


def paper_table() -> str:
    """The paper's four policies with its settings, on hardware on which this project has run none of them."""
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
    lengths = Lengths(TYPICAL_PROMPT, config.rollout.max_tokens // 2, config.critic.max_tokens // 2)
    return Job(config, shape, hardware, count, fewest_hosts(count, hardware.per_host), lengths)


PUBLISHED = (
    # model, devices, tokens of a sequence, LoRA's rank, GiB, tokens per second
    ("qwen3-0.6b", 1, 16384, 0, 12.5, 11_896),
    ("qwen3-0.6b", 1, 65536, 0, 19.6, 10_147),
    ("qwen3-4b", 1, 16384, 16, 23.3, 6_229),
    ("qwen3-4b", 1, 65536, 16, 42.0, 4_164),
    ("qwen3-4b", 8, 16384, 0, 17.1, 26_026),
    ("qwen3-4b", 8, 65536, 0, 36.1, 28_966),
)
"""prime-rl's `benchmarks/baselines/*.json` of 2026-01-15: its learner alone on H100, synthetic data, all layers
recomputed, a full micro-batch per device."""


def published_table() -> str:
    """The plan of the same steps, with another trainer's figures."""
    head = [
        "model",
        "H100",
        "tokens of a sequence",
        "GiB, planned",
        "GiB, theirs",
        "tokens/s, planned",
        "tokens/s, theirs",
    ]
    rows = []
    for model, count, context, rank, size, rate in PUBLISHED:
        job = learner_job(model, count, context, rank)
        parts = (sum(moments(job)[name].values()) for name in ("loss", "backward", "reduction", "update"))
        planned = f"{max(parts) / GIB:.1f}", f"{count * context / learn(job):,.0f}"
        name = f"{model}, LoRA {rank}" if rank else model
        rows.append([name, str(count), f"{context:,}", planned[0], f"{size}", planned[1], f"{rate:,}"])
    return markdown_table(head, rows, right=set(head[1:]))


def learner_job(model: str, count: int, context: int, rank: int) -> Job:
    """One update of one full sequence per device."""
    layer = {
        "algorithm": "grpo",
        "rollout": {"prompts": count, "n": 1, "max_tokens": context - 1},
        "engine.max_model_len": context,
        "loss.kl_coef": 0,
        "train": {"epochs": 1, "micro_tokens": context, "optimizer": "adamw-fused"},
        "policy.gradient_checkpointing": True,
        "lora.rank": rank,
    }
    return Job(build_config(layer), find_shape(model), NVIDIA["h100"], count, 1, Lengths(1, context - 1, 1))


def hardware_table() -> str:
    """The figures of each device."""
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
    shares = f"{GEMMS:g} of the FLOP/s, {MEMORY:g} of a memory's and {LINK:g} of a link's bytes per second"
    return markdown_table(head, rows, right=set(head[1:-1])) + f"\n[us] A step is assumed to reach {shares}.\n"


if __name__ == "__main__":
    print(hardware_table(), paper_table(), published_table(), sep="\n")
