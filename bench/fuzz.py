"""Fuzz test of the verifier and the critique parser with thousands of hostile texts.

    python -m bench.fuzz [--answers 10000] [--critiques 100000] [--seed 0] [--out bench/results/fuzz]

Answers go through a `VerifierPool`: exceptions and time-outs (5 s of any clock) are listed, with the CPU seconds used.
Critiques are parsed; then each shape of `SHAPES` is parsed at four sizes from 125 KB to 1 MB, five times each. The
minimum CPU times are fitted by a power of the size: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from bench.verifier import cpu_seconds
from capo_fast.credit.critique_parser import parse_critique
from capo_fast.credit.neutralise import neutralise
from capo_fast.verify.pool import VerifierError, VerifierPool

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import fuzz_texts

SHAPES = [
    "<",
    "judgment: ",
    "judgment (",
    "judgment: yes or ",
    "<incorrect_steps>",
    "<incorrect_steps>1</incorrect_steps>",
]
SHAPES += [
    "<step_1",
    "<step_1>",
    "1-",
    "1 ",
    "</",
    "< ",
    "&lt;",
    "a\u0301",
    "\u6b65\u9aa4\uff1a",
    "```\n- **step 3**\r\n",
]


def answers(count: int, seed: int) -> dict[str, Any]:
    random = Random(seed)
    texts = [*fuzz_texts.HOSTILE_ANSWERS, *(fuzz_texts.latex(random) for _ in range(count))][:count]
    pairs = [(text, random.choice([r"\frac{7}{3}", "7", "x+1", "(1,2)", texts[i - 1]])) for i, text in enumerate(texts)]
    with ProcessPoolExecutor(2) as processes:  # two, because CPU time is counted per process
        outcomes = [outcome for half in processes.map(_checked, (pairs[::2], pairs[1::2])) for outcome in half]
    used = sorted(cpu for cpu, _, _ in outcomes)
    return {
        "texts": count,
        "exceptions": [text for _, kind, text in outcomes if kind == "exception"],
        "time-outs": [[cpu, text] for cpu, kind, text in outcomes if kind == "time-out"],
        "CPU seconds": {"median": statistics.median(used), "p99": used[int(0.99 * count)], "most": used[-1]},
    }


def _checked(pairs: Sequence[tuple[str, str]]) -> list[tuple[float, str, str]]:
    """CPU seconds, outcome and start of the text of each pair."""
    outcomes = []
    with VerifierPool(1) as pool:
        for pair in [(r"\sin 1", r"\cos 1"), *pairs]:
            before = cpu_seconds(pool)
            try:
                kind = "time-out" if pool.check([pair])[0] is None else "verdict"
            except VerifierError:
                kind = "exception"
            used = round(max(cpu_seconds(pool) - before, 0.0), 2)
            outcomes.append((used, kind, " against ".join(repr(text)[:60] for text in pair)))
    return outcomes[1:]


def critiques(count: int, seed: int) -> dict[str, Any]:
    random, abstained = Random(seed), 0
    for _ in range(count):
        text, steps = fuzz_texts.critique(random), random.randint(1, 12)
        critique = parse_critique(text, steps, finished=random.random() < 0.8)
        if not critique.wrong_steps <= set(range(steps)) or (critique.abstained and critique.wrong_steps):
            raise SystemExit(f"an impossible critique of {steps} steps: {critique}")
        abstained += critique.abstained
    return {"texts": count, "exceptions": 0, "abstained": abstained}


def growth() -> dict[str, dict[str, float]]:
    """CPU seconds at the largest size, and the exponent that fits the times of all sizes: 1 is linear, 2 quadratic."""
    found = {}
    for shape in SHAPES:
        for body in (shape, f"<incorrect_steps>{shape}"):
            for name, fn in (("parse", lambda text: parse_critique(text, 20)), ("neutralise", neutralise)):
                texts = [body + shape * (size // len(shape)) for size in SIZES]
                seconds = [min(_timed(fn, text) for _ in range(REPEATS)) for text in texts]
                found[f"{name} {body!r}"] = {"seconds": round(seconds[-1], 3), "exponent": round(_slope(seconds), 2)}
    return found


SIZES = (125_000, 250_000, 500_000, 1_000_000)
REPEATS = 5


def _slope(seconds: Sequence[float]) -> float:
    return statistics.linear_regression([math.log(size) for size in SIZES], [math.log(s) for s in seconds]).slope


def _timed(fn: Any, text: str) -> float:
    gc.collect()
    gc.disable()  # the time of a full collection depends on the process's objects, not on the text
    start = time.process_time()
    fn(text)
    seconds = time.process_time() - start
    gc.enable()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--critiques", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/fuzz"))
    arguments = parser.parse_args()
    report = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "critiques": critiques(arguments.critiques, arguments.seed),
        "growth": growth(),
        "answers": answers(arguments.answers, arguments.seed),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fuzz.json").write_text(json.dumps(report, indent=1) + "\n")
    worst = sorted(report["growth"].items(), key=lambda item: -item[1]["exponent"])[:5]
    found, read = report["answers"], report["critiques"]
    lines = ["# Fuzz", "", f"`python -m bench.fuzz` on {report['machine']}.", ""]
    lines += [
        f"- {found['texts']} answers: {len(found['exceptions'])} exceptions, {len(found['time-outs'])} time-outs;"
    ]
    lines[-1] += f" CPU seconds {found['CPU seconds']}."
    lines += [f"  - time-out after {cpu} CPU seconds: `{text}`" for cpu, text in found["time-outs"]]
    lines += [f"- {read['texts']} critiques: {read['exceptions']} exceptions, {read['abstained']} abstained."]
    lines += ["- CPU time from 125 KB to 1 MB grows as the size to the power of (1 is linear), the worst five:"]
    lines += [f"  - {name}: {item['exponent']} ({item['seconds']} s at 1 MB)" for name, item in worst]
    (arguments.out / "fuzz.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
