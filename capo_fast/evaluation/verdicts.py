"""`capo verify`: verdicts of the rule verifier on one pair or a file of answers, with the rule that decided.

capo verify '\\boxed{1/2}' 0.5 --explain
capo verify solutions.jsonl --response-field solution --reference-field answer --out verdicts.jsonl
capo verify runs/first
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import capo_fast.runtime.extras  # noqa: F401  first: its errors are clearer than those of the imports below
from capo_fast.command import run_command
from capo_fast.config.arguments import Flags, read_arguments
from capo_fast.config.load import build_config, read_file
from capo_fast.config.paths import path_argument, resolve_path
from capo_fast.config.schema import RewardConfig
from capo_fast.errors import ConfigError
from capo_fast.runtime.files import json_line, replacing
from capo_fast.terminal import print_line, printable
from capo_fast.verify.answers import Judgement
from capo_fast.verify.functions import Item
from capo_fast.verify.pool import WorkerPool

if TYPE_CHECKING:
    from capo_fast.evaluation.answer_rows import AnswerRow

RESPONSES = ("response", "text", "pred", "prediction", "solution", "output", "completion")
"""Field names of a response; the first one that the first row has is used."""
REFERENCES = ("reference", "answer", "ref", "gold", "target", "ground_truth")
BLOCK = 1_000
"""Answers passed to the workers at a time."""
USAGE = "capo verify ANSWER REFERENCE | FILE | RUN"
RULES = RewardConfig().fn
"""`reward.fn` of the rule verifier."""
WIDTH = 48
"""Characters of an answer in a line."""
JUDGE, EXPLAIN = "capo_fast.verify.answers:judge", "capo_fast.verify.explain:stages"


def judged(answers: Iterable[AnswerRow], pool: WorkerPool[Judgement]) -> Iterator[tuple[AnswerRow, dict[str, Any]]]:
    """Each answer with its verdict as a line of `--out`."""
    remaining = iter(answers)
    while block := list(islice(remaining, BLOCK)):
        found = iter(pool.check([item for each in block if not each.missing for item in each.items]))
        for each in block:
            judgements = [] if each.missing else [next(found) for _ in each.items]
            row = {"where": each.where} | verdict_row(each.items[0], judgements)
            yield each, row if each.recorded is None else row | {"recorded": each.recorded}


def verdict_row(item: Item, found: Sequence[Judgement | None]) -> dict[str, Any]:
    """`found` has a Judgement for each right answer, None for a time-out; it is empty without a response."""
    best = next((each for each in found if each is not None and each.equal), found[0] if found else None)
    if best is None:
        verdict = "timed out" if found else "no response"
        return {"answer": None, "reference": item.reference, "verdict": verdict, "rule": None}
    verdict = "right" if best.equal else "wrong"
    return {"answer": best.answer, "reference": best.reference, "verdict": verdict, "rule": best.rule}


def verify_pair(response: str, reference: str, truncated: bool, explain: bool, reward: RewardConfig) -> int:
    """Print the verdict on one answer; returns 1 if it timed out."""
    item = Item(response, reference, {"truncated": truncated})
    with _pool(reward, EXPLAIN if explain else JUDGE) as pool:
        found: list[Any] = pool.check([item])
    stages = verdict_row(item, [None if explain else found[0]])
    for name, text in found[0] if explain and found[0] is not None else stages.items():
        print(f"{name:<12} {'none' if text is None else shortened(text, 400)}")
    return int(found[0] is None)


def verify_file(path: Path, answers: Iterable[AnswerRow], out: Path | None, reward: RewardConfig) -> int:
    """Print and write the verdict on every answer of a path; returns 1 if none could be checked."""
    verdicts, rules, recorded = Counter[str](), Counter[str](), Counter[bool]()
    with _pool(reward, JUDGE) as pool, replacing(out) if out else nullcontext() as file:
        for answer, row in judged(answers, pool):
            print(_line(row))
            if file:
                file.write(json_line(row))
            verdicts[row["verdict"]] += 1
            rules[row["rule"] or "none"] += 1
            if answer.recorded is not None and row["verdict"] in ("right", "wrong"):
                recorded[answer.recorded == (row["verdict"] == "right")] += 1
    total = verdicts.total()
    if not total:
        raise ConfigError(f"{path}: no answers in it")
    counts = ", ".join(f"{verdicts[name]} {name}" for name in ("right", "wrong", "timed out", "no response"))
    print(f"{total} answers: {counts}; by rule: {', '.join(f'{rule} {count}' for rule, count in rules.most_common())}")
    if recorded and reward.fn != RULES:
        print(f"the recorded outcomes are those of {printable(reward.fn)}, not the rule verifier's: not compared")
    elif recorded:
        print(f"{recorded[False]} of {recorded.total()} verdicts differ from the recorded outcome")
    return int(verdicts["right"] + verdicts["wrong"] == 0)


def _line(row: Mapping[str, Any]) -> str:
    answer = "none" if row["answer"] is None else shortened(row["answer"])
    recorded = f", recorded {row['recorded']:g}" if "recorded" in row else ""
    texts = f"{answer} | {shortened(row['reference'])}"
    return f"{Path(row['where']).name}  {row['verdict'] + recorded:<9}  {row['rule'] or 'none':<20}  {texts}"


def shortened(text: str, width: int = WIDTH) -> str:
    """At most `width` characters, with those that a terminal can't show as escapes."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[: width + 1]
    )
    return shown if len(text) <= width else f"{shown[:width]}…"


def _pool(reward: RewardConfig, fn: str) -> WorkerPool[Any]:
    return WorkerPool(fn, reward.workers, reward.timeout_s, reward.memory_limit, reward.conventions)


def run_of(path: Path) -> Path | None:
    """The folder of the run whose rollouts these are: RUN itself, or that of RUN/rollouts/FILE; None for other files,
    beside which a config.yaml may be another tool's."""
    whole = path.resolve()
    if whole.is_dir():
        return whole
    return whole.parent.parent if whole.parent.name == "rollouts" else None


def settings_of(path: Path | None, layer: Mapping[str, Any]) -> RewardConfig:
    """The `reward` section of the path's run, overridden by the command line."""
    run = None if path is None else run_of(path)
    saved = [] if run is None or not (run / "config.yaml").is_file() else [read_file(run / "config.yaml")]
    reward = build_config(*saved, layer).reward
    if reward.fn != RULES:
        print_line("note", f"reward.fn is {reward.fn}; these are the rule verifier's verdicts")
    return reward


def without_settings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--section.key VALUE`, and these: argparse would take each value for an answer.

    >>> without_settings(["--reward.tolerance", "0.01", "3.14", "3.15", "--reward.percent=false"])
    (['3.14', '3.15'], ['--reward.tolerance', '0.01', '--reward.percent=false'])
    """
    own, settings = list[str](), list[str]()
    remaining = deque(argv)
    while remaining:
        word = remaining.popleft()
        if not re.match(r"--[a-z_]+\.", word):
            own.append(word)
            continue
        settings.append(word)
        if "=" not in word and remaining and not remaining[0].startswith("--"):
            settings.append(remaining.popleft())
    return own, settings


def work(argv: Sequence[str]) -> int:
    flags = Flags(
        "capo verify", f"{USAGE} [arguments]", "Checks answers with the rule verifier; shows the deciding rule."
    )
    flags.add_argument("what", nargs="*", metavar="...", help="one response and its reference; rows; or a run's folder")
    flags.add_argument("--explain", action="store_true", help="for one pair: every stage from the text to the verdict")
    flags.add_argument("--truncated", action="store_true", help="for one pair: the length limit cut the response")
    flags.add_argument("--response-field", help=f"field of a row's response (default: {', '.join(RESPONSES)})")
    flags.add_argument("--reference-field", help=f"field of its reference (default: {', '.join(REFERENCES)})")
    flags.add_argument("--out", type=path_argument, help="JSONL file of all verdicts")
    flags.epilog = "and the settings of `reward`: --reward.tolerance, --reward.percent, --reward.timeout_s, ..."
    own, given = without_settings(argv)
    # An argument that begins with one dash is an answer: argparse treats a word with a space as no flag.
    words = [f" {word}" if re.match(r"-[^-]", word) and word != "-h" else word for word in own]
    options, rest = flags.parse_known_args(words)
    _, layer = read_arguments([*given, *rest])
    texts = [text.removeprefix(" ") if text.startswith(" -") else text for text in options.what]
    match texts:
        case [path]:
            return _file(resolve_path(path), options, layer)
        case [_, _] if options.out or options.response_field or options.reference_field:
            raise ConfigError("--out, --response-field and --reference-field are for a file: found one pair")
        case [response, reference]:
            return verify_pair(response, reference, options.truncated, options.explain, settings_of(None, layer))
    raise ConfigError(f"found {len(texts)} arguments, wanted {USAGE}")


def _file(path: Path, options: argparse.Namespace, layer: Mapping[str, Any]) -> int:
    if options.explain or options.truncated:
        raise ConfigError("--explain and --truncated are for one pair: wanted an answer and a reference")
    from capo_fast.evaluation.answer_rows import read_pairs  # imports torch, which one pair does not need

    responses = (options.response_field,) if options.response_field else RESPONSES
    references = (options.reference_field,) if options.reference_field else REFERENCES
    answers = read_pairs(path, responses, references)
    return verify_file(path, answers, options.out, settings_of(path, layer))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 checked (right or wrong), 1 timed out or failed, 2 wrong arguments."""
    return run_command(lambda: work(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
