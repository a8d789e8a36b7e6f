"""Benchmark of the verifier: accuracy by kind, different answers accepted as equal, references, throughput.

    python -m bench.verifier [--data ../shared/data] [--only accuracy references throughput] [--out FOLDER]

Accuracy: `answers_equal`, and Math-Verify alone, on `answer_cases.jsonl` by the issue that a case is derived from, on
the cases of `tests/verify/kinds.jsonl` by kind, and on `answer_equiv.jsonl` by flag. Math-Verify alone is `parse` and
`verify` on the whole texts, with the reference in dollars; on `answer_equiv` both texts are in dollars, which scores
best there.

References: each reference of six data sets against its own copy in a box, and against each part of it that a comma or
an operator outside brackets cuts off, which must be a different answer.

Throughput: answers/s through `VerifierPool` with two workers on a training step's mix: groups of rollouts, half of them
distinct. A worker's start-up and first 40 pairs aren't timed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import math_verify

from bench.machine import processor
from capo_fast.markdown import markdown_table
from capo_fast.runtime.software import versions
from capo_fast.verify.answers import judge
from capo_fast.verify.functions import VerifyTimeout
from capo_fast.verify.limits import time_limit
from capo_fast.verify.pool import VerifierPool

Pair = tuple[str, str]
Equal = Callable[[str, str, float], bool]
KINDS = {  # kinds of answer_cases.jsonl, by the end of the address
    "Math-Verify/issues/14": "different answers", "Math-Verify/pull/81": "mixed numbers",
    "Math-Verify/issues/76": "emphasis, Answer:", "ds4/pull/319": "answer is, chains",
    "verl/pull/7274": "#### as mark and heading", "proeval/pull/19": "signs", "trl/pull/4563": "thinking",
    "Math-Verify/issues/69": "program spelling", "Math-Verify/issues/67": "percent",
    "Math-Verify/issues/47": "several answers", "ms-swift/issues/4541": "quantities, named unknowns",
    "Math-Verify/issues/44": "leading zeros, several boxes", "Math-Verify/issues/48": "decimals and constants",
    "Math-Verify/issues/26": "equations", "Math-Verify/issues/71": "intervals, inequalities",
    "OpenThoughts-Agent/pull/129": "unions", "Math-Verify/issues/16": "choices", "ms-swift/pull/10147": "fractions",
    "Math-Verify/issues/37": "LaTeX's spellings", "OpenRLHF/pull/1285": "other boxes",
    "slime/pull/2150": "other boxes", "lm-evaluation-harness/pull/4039": "thousands",
    "CoursIA/pull/12505": "currency in prose", "PortOS/pull/7304": "units",
    "Skills/issues/1092": "answers in words", "inspect_ai/pull/1716": "Unicode",
    "Math-Verify/issues/2": "matrices, tuples, sets",
}  # fmt: skip
DATA_SETS = {
    "MATH": ("math_train7500.jsonl.gz", "math_test5000.jsonl.gz"),
    "Minerva": ("minerva_math.jsonl",),
    "OlympiadBench": ("olympiadbench.jsonl",),
    "AIME, AMC": ("aime24.jsonl", "aime25.jsonl", "amc23.jsonl"),
    "GSM8K": ("gsm8k_train.jsonl.gz", "gsm8k_test.jsonl"),
}
OWN_CASES = Path(__file__).parents[1] / "tests" / "verify" / "kinds.jsonl"
WARM_UP, GROUP, COUNT = 40, 8, 1000
WHO = ("capo_fast", "Math-Verify")
LINE = "- {kind}: `{response!r:.80}` against `{reference!r:.80}`: {capo_fast}, labelled {equal}"
_CUT = re.compile(
    r",|;|(?<![\^_{(\[,=])[+-]|/|<|>|\b(?:and|or)\b|\\(?:cdot|times|pm|cup|leq?|geq?)(?![a-z])|\\text\{ ?(?:and|or) ?\}"
)


def rows_of(file: Path) -> list[dict[str, Any]]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def ours(response: str, reference: str, tolerance: float = 0.0) -> bool:
    return judge(response, reference, tolerance=tolerance).equal


def bare(response: str, reference: str, tolerance: float = 0.0) -> bool:
    gold, answer = (math_verify.parse(text, parsing_timeout=None) for text in (in_dollars(reference), response))
    return bool(math_verify.verify(gold, answer, timeout_seconds=None))


def in_dollars(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def verdict(equal: Equal, row: dict[str, Any]) -> bool | None:
    """The verdict; None for a time-out. A row's precision setting becomes a tolerance."""
    precision = (row.get("settings") or {}).get("precision", 6)
    try:
        with time_limit(30.0):  # the machine may be busy
            return equal(row["response"], row["reference"], 10.0**-precision if precision < 6 else 0.0)
    except VerifyTimeout:
        return None


def cases(data: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each set: response, reference, equal, kind."""
    public, own = rows_of(data / "answer_cases.jsonl"), rows_of(OWN_CASES)
    for row in public:
        row["kind"] = next((name for end, name in KINDS.items() if row["source"].endswith(end)), "own variations")
        row["response"] = row["solution"]
    labelled = rows_of(data / "answer_equiv.jsonl")
    for row in labelled:
        row.update(response=row["pred"], reference=row["ref"], kind=", ".join(row["flags"]) or "no flag")
    return {"answer_cases": public, "tests/verify/kinds": own, "answer_equiv": labelled}


def accuracy(data: Path) -> dict[str, Any]:
    report = {}
    for name, rows in cases(data).items():
        wrap = in_dollars if name == "answer_equiv" else str
        alone = [verdict(bare, row | {"response": wrap(row["response"])}) for row in rows]
        report[name] = _by_kind(rows, {"capo_fast": [verdict(ours, row) for row in rows], "Math-Verify": alone})
    return report


def _by_kind(rows: Sequence[dict[str, Any]], found: dict[str, list[bool | None]]) -> dict[str, Any]:
    """Right verdicts of each kind, and every row with a wrong verdict. found: verdicts on the rows by verifier."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    judged = [row | {who: verdicts[i] for who, verdicts in found.items()} for i, row in enumerate(rows)]
    for row in judged:
        table[row["kind"]].update({"pairs": 1, **{who: int(row[who] == row["equal"]) for who in found}})
    wrong = [row for row in judged if any(row[who] != row["equal"] for who in found)]
    shown = [{key: row[key] for key in ("kind", "response", "reference", "equal", *found)} for row in wrong]
    return {"kinds": table, "wrong": shown, "different": sum(not row["equal"] for row in rows)}


def references(data: Path) -> dict[str, Any]:
    report = {}
    for name, files in DATA_SETS.items():
        answers = [row["answer"] for file in files for row in rows_of(data / file)]
        found: dict[str, Any] = {
            "references": len(answers),
            "not equal to itself": [],
            "parts": 0,
            "equal to a part": [],
        }
        for answer in dict.fromkeys(answers):
            if verdict(ours, {"response": rf"$\boxed{{{answer}}}$", "reference": answer}) is not True:
                found["not equal to itself"].append(answer)
            parts = list(dict.fromkeys(parts_of(answer)))
            found["parts"] += len(parts)
            boxes = [{"response": rf"$\boxed{{{part}}}$", "reference": answer} for part in parts]
            found["equal to a part"] += [[row["response"], answer] for row in boxes if verdict(ours, row)]
        report[name] = found
    return report


def parts_of(answer: str) -> Iterator[str]:
    """The texts before and after each comma and operator outside brackets."""
    for cut in _CUT.finditer(answer):
        before, after = answer[: cut.start()], answer[cut.end() :]
        if before.strip() and after.strip() and all(before.count(a) == before.count(b) for a, b in ("()", "[]", "{}")):
            yield from (before.strip(), after.strip())


def step_mix(data: Path, random: Random) -> list[Pair]:
    """Groups of eight rollouts, half of them distinct: the solution, and solutions of the same subject."""
    maths, groups = rows_of(data / "math_test5000.jsonl.gz"), []
    for row in random.sample(maths, 2000):
        others = random.sample([each for each in maths if each["subject"] == row["subject"]], GROUP // 2 - 1)
        boxes = [rf"{other['solution'][-800:]} So it is $\boxed{{{other['answer']}}}$." for other in others]
        groups.append([(text, row["answer"]) for text in [row["solution"], *boxes] * 2])
    return [pair for group in groups for pair in group]


def throughput(data: Path) -> list[dict[str, int]]:
    pairs, lines = step_mix(data, Random(0)), []
    with VerifierPool(2) as pool:
        pool.check(pairs[:WARM_UP])
        for i in range(WARM_UP, WARM_UP + 3 * COUNT, COUNT):
            before, start, chosen = cpu_seconds(pool), time.perf_counter(), pairs[i : i + COUNT]
            figures = {"answers": COUNT, "distinct": len(set(chosen)), "timed out": pool.check(chosen).count(None)}
            wall, used = time.perf_counter() - start, cpu_seconds(pool) - before
            lines.append(figures | {"answers/s": round(COUNT / wall), "answers/CPU s": round(COUNT / used)})
    return lines


def cpu_seconds(pool: VerifierPool) -> float:
    """CPU seconds of the running workers (Linux) and of all that have exited, including killed ones."""
    exited, ticks = resource.getrusage(resource.RUSAGE_CHILDREN), 0
    for worker in pool._team:
        if not worker.dead:
            fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") + exited.ru_utime + exited.ru_stime


def markdown(report: dict[str, Any]) -> str:
    parts = ["# The verifier", f"`python -m bench.verifier` on {report['machine']}, {report['versions']}."]
    for name, found in report.get("accuracy", {}).items():
        kinds = {
            **found["kinds"],
            "all": {key: sum(k[key] for k in found["kinds"].values()) for key in ("pairs", *WHO)},
        }
        rows = [
            [kind, str(n["pairs"]), *(f"{n[who]} ({n[who] / n['pairs']:.1%})" for who in WHO)]
            for kind, n in kinds.items()
        ]
        parts += [f"## Right verdicts on {name}", markdown_table(["kind", "pairs", *WHO], rows)]
        accepted = {who: sum(bool(row[who]) and not row["equal"] for row in found["wrong"]) for who in WHO}
        parts += [
            f"{n} of {found['different']} different answers accepted as equal by {who}." for who, n in accepted.items()
        ]
        parts += [LINE.format(**row) for row in found["wrong"] if row["capo_fast"] != row["equal"]]
    for name, found in report.get("references", {}).items():
        parts.append(f"{name}: " + "; ".join(f"{key}: {value or 'none'}" for key, value in found.items()))
    if "throughput" in report:
        rows = [[str(value) for value in line.values()] for line in report["throughput"]]
        parts += ["## Throughput, two workers", markdown_table(list(report["throughput"][0]), rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="others are kept")
    parser.add_argument("--out", type=Path, default=Path("bench/results/verifier"))
    arguments = parser.parse_args()
    file = arguments.out / "verifier.json"
    report = json.loads(file.read_text()) if file.exists() and len(arguments.only) < len(MEASURES) else {}
    packages = versions(("math-verify", "sympy", "latex2sympy2_extended"))
    report["machine"] = f"{os.cpu_count()} cores of {processor()}"
    report["versions"] = ", ".join(f"{name} {number}" for name, number in packages.items())
    report |= {name: MEASURES[name](arguments.data) for name in arguments.only}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (arguments.out / "verifier.md").write_text(markdown(report))
    print(markdown(report))


MEASURES: dict[str, Callable[[Path], Any]] = {"accuracy": accuracy, "references": references, "throughput": throughput}

if __name__ == "__main__":
    main()
