"""Statistics of bench.end_to_end: figures of a round, ratios within it, and their spread over rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from bench.end_to_end.arms import BASE, of_trl
from capo_fast.markdown import markdown_table

STAGES = ("sync", "rollout", "critique", "verify", "learn", "rest")
Round = Mapping[str, Any]
"""Output of an arm: `{"steps": [{"seconds": {"learn": 0.9}, "rollouts": 128, "tokens": 3684}], "outside": 20.1}`."""
Spread = Mapping[str, Sequence[float]]
"""Median, minimum and maximum over the rounds, by figure."""


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


def ratios(arm: Mapping[str, float], base: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
    """Times of an arm over those of the base, for stages of both, and its step over that of TRL's fastest arm."""
    stages = {f"{key[:-4]}, ratio": arm[key] / base[key] for key in base if key.endswith(", ms") and arm.get(key)}
    return stages | {"step, ratio to the best": arm["step, ms"] / best["step, ms"]}


def best_of_trl(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """TRL's arm with the shortest step, by the median over its rounds."""
    return min(filter(of_trl, found), key=lambda name: median(each["step, ms"] for each in found[name]))


def summarise(results: Mapping[str, Sequence[Round]]) -> dict[str, Spread]:
    """Every figure of every arm, with ratios in rounds that the base and TRL's fastest arm have too."""
    found = {name: [figures(each) for each in rounds] for name, rounds in results.items()}
    base, best = found[BASE], found[best_of_trl(found)]
    return {
        name: spread([one | ratios(one, *to) for one, *to in zip(rounds, base, best, strict=False)])
        for name, rounds in found.items()
    }


def spread(rounds: Sequence[Mapping[str, float]]) -> Spread:
    keys = {key: None for each in rounds for key in each}
    values = {key: [each[key] for each in rounds if key in each] for key in keys}
    return {key: [median(some), min(some), max(some)] for key, some in values.items()}


def table(summary: Mapping[str, Spread]) -> str:
    """The summary as Markdown: a row per figure, a column per arm; a dash if the arm has no such stage."""
    times = [f"{stage}, ms" for stage in (*STAGES, "step")]
    others = ["tokens/s", "rollouts", "tokens a response", "first step, ms", "outside the steps, s"]
    by_stage = [key.replace(", ms", ", ratio") for key in times]
    rows = [*times, *by_stage, "step, ratio to the best", *others]
    shown = [row for row in rows if any(row in arm for arm in summary.values())]
    cells = [[row, *(cell(arm.get(row)) for arm in summary.values())] for row in shown]
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


def page(found: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: workload, machine and the table."""
    work, versions = found["work"], ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    live = "the run's own reward" if work["live"] is None else f"{work['live']:.0%} of the groups live"
    length = f"at most {work['max_tokens']}" if work["tokens"] is None else f"{work['tokens']}"
    return [
        f"{work['model']}: {work['prompts']} prompts x {work['n']} rollouts of {length} tokens, {work['updates']} "
        f"update{'s' * (work['updates'] != 1)} per step, {live}. TRL's fastest arm: {found['best']}.",
        "",
        f"Rounds: {', '.join(f'{name} {len(rounds)}' for name, rounds in found['rounds'].items())}. "
        f"{found['cores']} cores of {found['processor']}, {found['threads']} threads, commit {found['commit']}, "
        f"python {found['python']}, {versions}; `{found['command']}`",
        "",
        table(found["summary"]),
    ]
