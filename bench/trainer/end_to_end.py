"""A training step end to end on a CPU, by stage: capo_fast's loop beside TRL's, as ratios in one run.

    python -m bench.trainer.end_to_end [--steps 8] [--rounds 3] [--threads N] [--arms NAME ...] [--json FILE]

Every arm is a process of its own, one after the other, and the rounds interleave them. An arm's figure in a round is
the median over its steps after the first, which warms up and is reported apart; printed are median, least and greatest
over the rounds. A ratio is to the arm `grpo` of the same round.

    capo       the default run: rollouts by vLLM, a critique of each by the critic, the fused CPU kernel
    grpo       the same without the critic: what TRL can be compared with, as it has none
    eager      grpo with policy.loss_kernel: reference. Logits held whole, log_softmax, gather, ratio and clip in plain
               torch with autograd; the backward forms the logits a second time
    trl        TRL's GRPOTrainer, rollouts by transformers' generate. Its loss is no longer eager torch: 1.16 applies
               the head in tiles of tokens and forms each again in the backward
    trl+capo   the same with the loss of capo_kernels.adapters.trl

Equal: the model and its first weights, float32, sdpa, prompts and their order (checked at each step), rollouts a
prompt, longest answer, temperature, reward function, old log-probs by a forward before the first update, two updates a
batch, token mean, clip range, no KL, gradient clip, AdamW and its rate, entropy as a metric, no gradient checkpointing,
threads; no evaluation and no checkpoint in a step. The policies drift apart, as they sample with different generators:
see the tokens a response.

Not equal. capo_fast moves the weights into its engine and checks them there, by a checksum of each tensor and the
log-probs of a probe batch on both sides (sync); takes each sampled token's log-prob from the engine and compares it
with the trainer's; checks answers in a killable process, in capo while the critic reads; writes the step's rollouts and
metrics to disk; trains under FSDP2, on rollouts packed into rows of at most 2,048 tokens. TRL generates with the
trained module itself; checks answers in its own process; writes nothing here; pads an update's 64 rollouts into one
batch, takes them at random from the 128 (capo_fast: whole groups), and takes the token mean over both updates. TRL's
stages are timed by a subclass. `learn` is old log-probs, loss, backward, clip and optimizer on both sides, `rest` what
is left of a step.

The vocabulary is 64: most of `learn` is the model, little the loss. bench/kernels/bench_policy_loss.py has the loss at
151,936.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import about
from capo_fast.config import load_config
from capo_fast.config.schema import Config
from capo_fast.markdown import markdown_table

ARMS = {
    "capo": ["bench.trainer.end_to_end_capo"],
    "grpo": ["bench.trainer.end_to_end_capo", "--algorithm", "grpo"],
    "eager": ["bench.trainer.end_to_end_capo", "--algorithm", "grpo", "--policy.loss_kernel", "reference"],
    "trl": ["bench.trainer.end_to_end_trl", "trl"],
    "trl+capo": ["bench.trainer.end_to_end_trl", "capo"],
}
"""Module and arguments of each arm."""
BASE = "grpo"
STAGES = ("sync", "rollout", "critique", "verify", "learn", "rest")
Round = dict[str, Any]
"""What an arm wrote: `{"steps": [{"seconds": {"learn": 0.9}, "rollouts": 128, "tokens": 3684}], "outside": 20.1}`."""


def arm_config(steps: int, folder: Path, words: Sequence[str]) -> Config:
    """The embedded default, without evaluation; checkpoints lie before the first step and after the last."""
    own = {"run.dir": folder / "run", "train.steps": steps, "eval.path": "none", "checkpoint.every": 0}
    return load_config([*(f"--{key}={value}" for key, value in own.items()), *words])


def run_arm(name: str, steps: int, threads: int) -> Round:
    """One process of an arm: a step to warm up and `steps` to measure. Ends the command where the arm fails."""
    module, *words = ARMS[name]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", module, str(steps + 1), folder, *words]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{name}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
        found = json.loads(Path(folder, "arm.json").read_text())
    return found | {"outside": seconds - sum(map(wall, found["steps"]))}


def wall(step: Mapping[str, Any]) -> float:
    return sum(step["seconds"].values())


def figures(found: Round) -> dict[str, float]:
    """An arm's figures in one round: medians over the steps after the first.

    >>> step = {"seconds": {"learn": 0.5, "rest": 0.5}, "rollouts": 4, "tokens": 20}
    >>> figures({"steps": [step, step], "outside": 9.0})["tokens/s"]
    20.0
    """
    first, *steps = found["steps"]
    stages = [stage for stage in STAGES if any(stage in step["seconds"] for step in steps)]
    of: dict[str, Callable[[Any], float]] = {
        **{f"{stage}, ms": lambda step, stage=stage: 1e3 * step["seconds"].get(stage, 0.0) for stage in stages},
        "step, ms": lambda step: 1e3 * wall(step),
        "tokens/s": lambda step: step["tokens"] / wall(step),
        "rollouts": lambda step: step["rollouts"],
        "tokens a response": lambda step: step["tokens"] / step["rollouts"],
    }
    medians = {name: median(map(figure, steps)) for name, figure in of.items()}
    return medians | {"first step, ms": 1e3 * wall(first), "outside the steps, s": found["outside"]}


def ratios(arm: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """Times of an arm over those of the base, where both have the stage."""
    return {f"{key[:-4]}, ratio": arm[key] / base[key] for key in base if key.endswith(", ms") and arm.get(key)}


def spread(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Median, least and greatest over rounds, by figure."""
    keys = {key: None for each in rounds for key in each}
    values = {key: [each[key] for each in rounds if key in each] for key in keys}
    return {key: [median(some), min(some), max(some)] for key, some in values.items()}


def summarise(results: Mapping[str, Sequence[Round]]) -> dict[str, dict[str, list[float]]]:
    """Every figure and ratio of every arm as [median, least, greatest] over the rounds."""
    found = {name: [figures(each) for each in rounds] for name, rounds in results.items()}
    return {
        name: spread([arm | ratios(arm, base) for arm, base in zip(rounds, found[BASE], strict=True)])
        for name, rounds in found.items()
    }


def table(summary: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The summary as Markdown: a row a figure, a column an arm; a dash where an arm has no such stage."""
    times = [f"{stage}, ms" for stage in (*STAGES, "step")]
    others = ["tokens/s", "rollouts", "tokens a response", "first step, ms", "outside the steps, s"]
    rows = [*times, *(key.replace(", ms", ", ratio") for key in times), *others]
    cells = [[row, *(cell(arm.get(row)) for arm in summary.values())] for row in rows]
    return markdown_table(["", *summary], cells).rstrip()


def cell(values: Sequence[float] | None) -> str:
    """
    >>> cell([0.512, 0.5, 0.52]), cell([940.2, 920.0, 1001.0]), cell([128, 128, 128]), cell(None)
    ('0.51 [0.50, 0.52]', '940 [920, 1001]', '128', '-')
    """
    if values is None:
        return "-"
    middle, least, most = (f"{value:.{2 if values[0] < 10 else 1 if values[0] < 100 else 0}f}" for value in values)
    return middle if least == most else f"{middle} [{least}, {most}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of an arm in a round, beside the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help=f"{BASE} is always among them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch, in every arm")
    parser.add_argument("--json", type=Path, help="where the figures go as JSON, the raw seconds with them")
    options = parser.parse_args()
    if min(options.steps, options.rounds, options.threads) < 1:
        parser.error("--steps, --rounds and --threads: want at least 1")
    results: dict[str, list[Round]] = {name: [] for name in ARMS if name in (BASE, *options.arms)}
    for number in range(options.rounds):
        for name, rounds in results.items():
            rounds.append(run_arm(name, options.steps, options.threads))
            now = figures(rounds[-1])["step, ms"]
            print(f"round {number + 1} of {options.rounds}, {name}: {now:.0f} ms a step", file=sys.stderr, flush=True)
    summary = summarise(results)
    print(table(summary))
    if options.json:
        found = {**about(options.threads), "steps": options.steps, "summary": summary, "rounds": results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
