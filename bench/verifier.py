"""The verifier measured: accuracy, throughput, and what is settled without Math-Verify.

    python -m bench.verifier [--data ../shared/data] [--pairs 1000] [--rounds 3] [--out FOLDER]

Accuracy: `answers_equal` and bare Math-Verify (`parse` and `verify` on the whole texts, wrapped as it likes
best) on `answer_equiv.jsonl`, by flag, with every pair on which `answers_equal` and the label differ, and whose it is.

Throughput: answers/s through `VerifierPool` with one worker and with two, on pairs that are all different; "library"
is `answers_equal` with `compare` switched off, "bare" is Math-Verify alone. Rounds take turns. As the machine may be
shared, answers per CPU second of the workers (all rounds together) stand beside them: times the cores, what they could
do alone. A worker's start-up and first 40 pairs aren't timed.

Agreement: what `compare` settles by itself against Math-Verify, on every pair of the throughput (minutes).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import math_verify

from bench.machine import processor
from capo_fast.markdown import markdown_table
from capo_fast.verify import answers as verify
from capo_fast.verify.pool import VerifierPool, VerifyTimeout

Pair = tuple[str, str]
CONTENDERS = {
    "capo_fast": "capo_fast.verify:answers_equal",
    "library": "bench.verifier:library",
    "bare": "bench.verifier:bare",
}
MIX = {"ProcessBench": 4, "GSM8K models": 2, "MATH right": 1, "MATH respelled": 1, "MATH wrong": 2}
WARM_UP = 40


def library(prediction: str, reference: str) -> bool:
    """`answers_equal` without its fast path."""
    verify.compare = lambda predicted, expected: None
    return verify.answers_equal(prediction, reference)


def bare(prediction: str, reference: str) -> bool:
    return _bare(prediction, in_dollars(reference))


def _bare(prediction: str, reference: str) -> bool:
    gold, answer = (math_verify.parse(text, parsing_timeout=None) for text in (reference, prediction))
    return bool(math_verify.verify(gold, answer, timeout_seconds=None))


def in_dollars(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def boxed(text: str) -> str:
    return text if "\\boxed" in text else rf"$\boxed{{{text.replace('$', '')}}}$"


WRAPPINGS: dict[str, Callable[[str, str], bool]] = {
    "the reference in dollars": bare,
    "both in dollars": lambda prediction, reference: _bare(in_dollars(prediction), in_dollars(reference)),
    "both boxed": lambda prediction, reference: _bare(boxed(prediction), boxed(reference)),
    "neither": _bare,
}
"""How bare Math-Verify may be given an answer."""


def rows_of(file: Path) -> list[dict[str, Any]]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# ---- accuracy ----


def accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    verify.TIME_LIMIT_S = 30.0  # the machine may be busy
    said = {
        name: [_verdict(fn, row["pred"], row["ref"]) for row in rows]
        for name, fn in {"capo_fast": verify.answers_equal, **WRAPPINGS}.items()
    }
    plain = [i for i, row in enumerate(rows) if not row["flags"]]
    wrapped = {name: sum(said[name][i] == rows[i]["equal"] for i in plain) for name in WRAPPINGS}
    verdicts = {"capo_fast": said["capo_fast"], "Math-Verify": said[max(wrapped, key=lambda name: wrapped[name])]}
    by_flag = {}
    for flag in ["none", *sorted({flag for row in rows for flag in row["flags"]})]:
        chosen = [i for i, row in enumerate(rows) if flag in (row["flags"] or ["none"])]
        right = {name: sum(said[i] == rows[i]["equal"] for i in chosen) for name, said in verdicts.items()}
        by_flag[flag] = {"pairs": len(chosen), **right}
    disagreements = [
        {key: row[key] for key in ("id", "flags", "pred", "ref", "equal", "source", "test")}
        | {name: said[i] for name, said in verdicts.items()}
        for i, row in enumerate(rows)
        if verdicts["capo_fast"][i] != row["equal"]
    ]
    return {"right by flag": by_flag, "Math-Verify by wrapping": wrapped, "disagreements": disagreements}


def _verdict(fn: Callable[[str, str], bool], prediction: str, reference: str) -> bool | None:
    """None for a time-out."""
    try:
        with verify._time_limit(30.0):
            return fn(prediction, reference)
    except VerifyTimeout:
        return None


# ---- throughput ----


def kinds_of_pairs(data: Path, random: Random) -> dict[str, list[Pair]]:
    """Full solution texts against references, as in a training step; no pair occurs twice."""
    maths, olympiad = rows_of(data / "math_test5000.jsonl.gz"), rows_of(data / "olympiadbench.jsonl")
    process = [row for row in rows_of(data / "steps_processbench.jsonl.gz") if row["answer"]]
    gsm8k = [row for row in rows_of(data / "gsm8k_model_solutions.jsonl.gz") if row["model_answer"] is not None]
    kinds = {
        "ProcessBench": [("\n\n".join(row["steps"]), row["answer"]) for row in process],
        "GSM8K models": [("\n".join([*row["steps"], f"#### {row['model_answer']}"]), row["answer"]) for row in gsm8k],
        "MATH right": [(row["solution"], row["answer"]) for row in maths],
        "MATH respelled": [(rf"Thus it is $\boxed{{{respelled(row['answer'])}}}$.", row["answer"]) for row in maths],
        "MATH wrong": list(strangers(maths, random)),
        "OlympiadBench wrong": list(strangers(olympiad, random)),
        "Minerva wrong": list(strangers(rows_of(data / "minerva_math.jsonl"), random)),
    }
    for pairs in kinds.values():
        pairs[:] = dict.fromkeys(pairs)
        random.shuffle(pairs)
    return {"mix": list(mixed(kinds)), **kinds}


def respelled(answer: str) -> str:
    """The same value in other words: fractions not in lowest terms, numbers named, other layout."""
    answer = re.sub(
        r"\\frac\{(\d+)\}\{(\d+)\}", lambda match: rf"\dfrac{{{2 * int(match[1])}}}{{{2 * int(match[2])}}}", answer
    )
    answer = re.sub(r"\\sqrt\{(\d+)\}", lambda match: rf"\frac{{\sqrt{{{4 * int(match[1])}}}}}{{2}}", answer)
    return f"x = {answer}" if re.fullmatch(r"-?\d+", answer) else re.sub(r"([(),+])", r" \1 ", answer)


def strangers(rows: Sequence[dict[str, Any]], random: Random) -> Iterator[Pair]:
    """Each reference with the solution of another problem of its subject."""
    for row in rows:
        other = random.choice([each for each in rows if each["subject"] == row["subject"]])
        if other["answer"] != row["answer"]:
            yield rf"{(other['solution'] or '')[-2000:]} So it is $\boxed{{{other['answer']}}}$.", row["answer"]


def mixed(kinds: dict[str, list[Pair]]) -> Iterator[Pair]:
    """Ten at a time in the proportions of MIX, from the far end of each kind."""
    for i in range(min(len(kinds[name]) // share for name, share in MIX.items())):
        for name, share in MIX.items():
            yield from kinds[name][::-1][i * share : (i + 1) * share]


def throughput(kinds: dict[str, list[Pair]], count: int, rounds: int) -> list[dict[str, Any]]:
    lines = []
    for workers in (1, 2):
        pools = {name: VerifierPool(workers, timeout_s=10.0, fn=fn) for name, fn in CONTENDERS.items()}
        for pool in pools.values():
            pool.check(kinds["mix"][-WARM_UP:])
        for kind, pairs in kinds.items():
            rates: dict[str, list[list[float]]] = {name: [] for name in pools}
            most = min(count, len(pairs) // rounds)
            for i in range(rounds):
                for name, pool in pools.items():
                    share = most if name == "capo_fast" else most // 5
                    rates[name].append(rate(pool, pairs[i * most : i * most + share]))
            lines.append({"kind": kind, "workers": workers, "load": round(os.getloadavg()[0], 1), **rates})
            print(line_of(lines[-1]), flush=True)
        for pool in pools.values():
            pool.close()
    return lines


def rate(pool: VerifierPool, pairs: Sequence[Pair]) -> list[float]:
    """Answers, seconds, and CPU seconds of the workers."""
    before, start = cpu_seconds(pool), time.perf_counter()
    pool.check(pairs)
    wall, used = time.perf_counter() - start, cpu_seconds(pool) - before
    return [len(pairs), round(wall, 3), round(used, 2)]


def cpu_seconds(pool: VerifierPool) -> float:
    """What the living workers have used (Linux), and all that are gone: a killed one loses nothing."""
    gone, ticks = resource.getrusage(resource.RUSAGE_CHILDREN), 0
    for worker in pool._team:
        if not worker.dead:
            fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") + gone.ru_utime + gone.ru_stime


# ---- agreement ----


def agreement(kinds: dict[str, list[Pair]]) -> dict[str, Any]:
    """What `compare` settles against what Math-Verify says of the same two answers."""
    counts, differ = {"settled": 0, "left to Math-Verify": 0, "Math-Verify timed out": 0}, []
    for predicted, expected in dict.fromkeys(asked(pair) for pairs in kinds.values() for pair in pairs):
        sure = verify.compare(predicted, expected)
        counts["left to Math-Verify" if sure is None else "settled"] += 1
        if sure is not None and not verify._explodes(predicted) and not verify._explodes(expected):
            library_says = _verdict(verify._math_verify, predicted, expected)
            counts["Math-Verify timed out"] += library_says is None
            if library_says is not None and library_says != sure:
                differ.append({"prediction": predicted, "reference": expected, "compare": sure})
    return {"pairs": counts, "disagreements": differ}


def asked(pair: Pair) -> Pair:
    """The two answers as `compare` sees them."""
    return verify.extract_answer(pair[0]) or "", verify.extract_answer(pair[1]) or ""


# ---- the report ----


def line_of(line: dict[str, Any]) -> list[str]:
    """The median over the rounds, least and most; all answers over all CPU seconds."""
    cells = []
    for name in CONTENDERS:
        rates = [answers / wall for answers, wall, _ in line[name]]
        cpu = sum(answers for answers, _, _ in line[name]) / max(sum(used for _, _, used in line[name]), 0.01)
        cells += [f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})", f"{cpu:.0f}"]
    return [line["kind"], str(line["workers"]), str(line["load"]), *cells]


def markdown(report: dict[str, Any]) -> str:
    parts = ["# The verifier", f"`{report['command']}` on {report['machine']}, {report['versions']}."]
    if "accuracy" in report:
        parts += ["## Right answers on `answer_equiv.jsonl`", accuracy_table(report["accuracy"])]
    if "throughput" in report:
        heads = ["pairs", "workers", "load"]
        heads += [head for name in CONTENDERS for head in (f"{name}, answers/s (range)", "per CPU s")]
        rows = [line_of(line) for line in report["throughput"]]
        mix = ", ".join(f"{share} of ten {name}" for name, share in MIX.items())
        parts += [
            "## Throughput",
            f"`mix`: {mix}.",
            markdown_table(heads, rows).rstrip(),
        ]
    if "agreement" in report:
        found = report["agreement"]
        counts = ", ".join(f"{count} {name}" for name, count in found["pairs"].items())
        parts += ["## Agreement of `compare` with Math-Verify", f"Pairs: {counts}. Disagreements:"]
        said = "- `{prediction}` against `{reference}`: {compare}, not what Math-Verify says"
        parts += ["\n".join(said.format(**each) for each in found["disagreements"]) or "none"]
    return "\n\n".join(parts) + "\n"


def accuracy_table(found: dict[str, Any]) -> str:
    rows = [
        [flag, str(n["pairs"]), *(f"{n[name]} ({n[name] / n['pairs']:.1%})" for name in ("capo_fast", "Math-Verify"))]
        for flag, n in found["right by flag"].items()
    ]
    wrapped = ", ".join(f"{name} {right}" for name, right in found["Math-Verify by wrapping"].items())
    head = ["id", "flags", "prediction", "reference", "label", "capo_fast", "Math-Verify", "whose"]
    parts = [
        markdown_table(["flag", "pairs", "capo_fast", "Math-Verify alone"], rows),
        f"Math-Verify alone, by how both texts are wrapped, on pairs without a flag: {wrapped}. The best is shown.\n",
        "Every disagreement with a label (the last column says whose it is):\n",
        markdown_table(head, [disagreement(row) for row in found["disagreements"]]).rstrip(),
    ]
    return "\n".join(parts)


def disagreement(row: dict[str, Any]) -> list[str]:
    texts = [f"`{_short(row[key])}`" for key in ("pred", "ref")]
    said = [str(row[key]) for key in ("equal", "capo_fast", "Math-Verify")]
    return [row["id"], ", ".join(row["flags"]), *texts, *said, f"{row['source']}, {row['test']}"]


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 80 else f"{text[:25]} ... {text[-50:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=1000, help="in one round; a fifth of it for the slow contenders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", choices=["accuracy", "throughput", "agreement"], help="keeps what the report has of the rest"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/verifier"))
    arguments = parser.parse_args()
    file = arguments.out / "verifier.json"
    report = json.loads(file.read_text()) if arguments.only and file.exists() else {}
    report |= {
        "command": "python -m bench.verifier",
        "machine": f"{os.cpu_count()} cores of {processor()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("math-verify", "sympy", "latex2sympy2_extended"))
        + f", Python {platform.python_version()}",
    }
    kinds = kinds_of_pairs(arguments.data, Random(arguments.seed))
    todo = {
        "accuracy": lambda: accuracy(rows_of(arguments.data / "answer_equiv.jsonl")),
        "throughput": lambda: throughput(kinds, arguments.pairs, arguments.rounds),
        "agreement": lambda: agreement(kinds),
    }
    for name, measure in todo.items():
        if arguments.only in (None, name):
            report[name] = measure()
            arguments.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(report, indent=1) + "\n")
            (arguments.out / "verifier.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
