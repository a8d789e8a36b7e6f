"""The figures of bench.evidence's runs as JSON, tables and a plot.

The x axis is rollouts drawn: a quarter of the plan's budget is 4 steps, except for arms with dynamic sampling, whose
values are interpolated between two evaluations. Intervals are 95 %, Student's t over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import mpmath
import numpy as np

from bench.evidence.arms import ABLATIONS, ARMS, BASELINE, COMPARED, MAIN, WORLDS, Ablation, Plan, in_world, run_folder
from bench.evidence.runs import FIGURES, STAGES
from capo_fast.markdown import markdown_table

Run = dict[str, Any]
"""Content of a run's `figures.json`."""
Results = dict[str, dict[int, Run]]
"""Runs by arm and seed."""
Figure = Callable[[Run], float | None]
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
EARLY, LATE = (0.25, 0.5), (0.75, 1.0)
"""Windows of the budget in which the rule judges rollouts: steps 5 to 8 and 13 to 16 of 16."""


def load_results(runs: Path) -> Results:
    """All finished runs."""
    found: Results = {name: {} for name in ARMS}
    for name, arm in ARMS.items():
        for seed in range(arm.seeds):
            path = run_folder(runs, name, seed) / FIGURES
            if path.exists():
                found[name][seed] = json.loads(path.read_text())
    return found


# ---- figures of one run ----


class Figures:
    """The figures of a run under a plan."""

    def __init__(self, plan: Plan, cpu: str = "cpu") -> None:
        """cpu: figure used as CPU time; "cpu_all" includes the processes that the run started."""
        self.plan, self.budget, self.cpu = plan, plan.rollouts, cpu

    def step(self, part: float) -> str:
        """The step at which an arm without dynamic sampling has drawn this part of the budget, as a heading."""
        return f"step {self.plan.steps * part:g}"

    def rate(self, part: float) -> Figure:
        """pass@1 after this part of the budget."""
        return lambda run: float(np.interp(part * self.budget, *np.transpose(run["curve"])))

    def rate_after(self, cpu_seconds: float) -> Figure:
        """pass@1 after `cpu_seconds` of CPU time; at the run's end if it used less."""

        def figure(run: Run) -> float:
            drawn = np.interp(cpu_seconds, np.cumsum([0.0, *run[self.cpu]]), [0, *run["rollouts"]])
            return float(np.interp(drawn, *np.transpose(run["curve"])))

        return figure

    def area_by_time(self, cpu_seconds: float) -> Figure:
        """Mean of pass@1 from 0 to `cpu_seconds` of CPU time."""
        times = np.linspace(0.0, cpu_seconds, 101)
        return lambda run: float(np.trapezoid([self.rate_after(time)(run) for time in times], dx=0.01))

    def area(self, part: float) -> Figure:
        """Mean of pass@1 over this part of the budget, by trapezia between its quarters."""
        parts = [quarter for quarter in QUARTERS if quarter <= part]
        return lambda run: float(np.trapezoid([self.rate(at)(run) for at in parts], parts)) / part

    def spent(self, what: str, part: float = 1.0) -> Figure:
        """Seconds or tokens spent until this part of the budget was drawn."""
        return lambda run: float(np.interp(part * self.budget, [0, *run["rollouts"]], np.cumsum([0.0, *run[what]])))

    def share(self, window: tuple[float, float], part: str, whole: str) -> Figure:
        """Ratio of two counts by the rule, over the steps that end within a window of the budget; None for 0 / 0."""

        def figure(run: Run) -> float | None:
            low, high = (end * self.budget for end in window)
            rows = [row for n, row in zip(run["rollouts"], run["by_rule"], strict=True) if low < n <= high]
            total = sum(row[whole] for row in rows)
            return sum(row[part] for row in rows) / total if total else None

        return figure

    def unsound(self, window: tuple[float, float]) -> Figure:
        """Share of the right answers that were reached through a wrong step."""
        return self.share(window, "right_unsound", "right")


# ---- over seeds ----


@cache
def t_quantile(freedom: int) -> float:
    """Student's t at 97.5 %.

    >>> round(t_quantile(7), 3), round(t_quantile(2), 3)
    (2.365, 4.303)
    """

    def two_sided(t: Any) -> Any:
        return mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) - 0.05

    return float(mpmath.findroot(two_sided, (1.9, 13), solver="anderson"))


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half of its 95 % interval; None for a single value."""
    half = t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return fmean(values), half


def cell(values: Sequence[float | None], digits: int = 3, sign: str = "") -> str:
    """
    >>> cell([0.5, 0.6, 0.7]), cell([0.5]), cell([None])
    ('0.600 ± 0.248', '0.500', '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, half = interval(known)
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def differences(figure: Figure, runs: Mapping[int, Run], reference: Mapping[int, Run]) -> list[float]:
    """Differences by seed, for the seeds of both."""
    pairs = [(figure(run), figure(reference[seed])) for seed, run in runs.items() if seed in reference]
    return [a - b for a, b in pairs if a is not None and b is not None]


# ---- tables ----


def curve_table(results: Results, figures: Figures) -> str:
    columns = [*map(figures.rate, QUARTERS), figures.area(1.0)]
    rows = [[name, *(cell([f(run) for run in runs.values()]) for f in columns)] for name, runs in results.items()]
    return markdown_table(["arm", *map(figures.step, QUARTERS), "area"], rows)


def difference_table(results: Results, figures: Figures) -> str:
    columns = [figures.area(1.0), figures.rate(0.5), figures.rate(1.0), figures.unsound(EARLY), figures.unsound(LATE)]
    rows = [
        [name, *(cell(differences(f, runs, results[BASELINE]), sign="+") for f in columns)]
        for name, runs in results.items()
        if name != BASELINE
    ]
    head = ["arm", "area", figures.step(0.5), figures.step(1.0), "unsound, early", "unsound, late"]
    return markdown_table(head, rows)


def soundness_table(results: Results, figures: Figures) -> str:
    counts = [("right_unsound", "right"), ("named_wrong", "named"), ("named_wrong", "judged_wrong")]
    columns = [figures.share(window, *pair) for pair in counts for window in (EARLY, LATE)]
    names = [f"{what}, {when}" for what in ("unsound", "precision", "recall") for when in ("early", "late")]
    rows = [[name, *(cell([f(run) for run in runs.values()]) for f in columns)] for name, runs in results.items()]
    return markdown_table(["arm", *names], rows)


def seconds_table(results: Results, figures: Figures) -> str:
    spent = [figures.spent("cpu")(run) for run in results[BASELINE].values()]
    times = [part * fmean(spent) for part in QUARTERS[2::2]] if spent else []

    def row(name: str) -> Iterator[str]:
        runs = results[name].values()
        yield name
        yield from (cell([figures.spent(what)(run) for run in runs], digits=1) for what in ("cpu", "wall"))
        yield from (cell([figures.rate_after(time)(run) for run in runs]) for time in times)
        yield from (cell([run["stages"][stage] for run in runs], digits=1) for stage in STAGES)
        yield cell([run["rollouts"][-1] for run in runs], digits=0)

    rates = [f"pass@1 after {time:.0f} CPU s" for time in times]
    head = ["arm", "CPU s", "wall s", *rates, *(f"{stage}, wall s" for stage in STAGES), "rollouts drawn"]
    return markdown_table(head, [list(row(name)) for name in results])


def ablation_table(ablation: Ablation, results: Results, figures: Figures) -> str:
    """The reference on the ablation's seeds, and each arm with its difference from it."""
    columns = [figures.rate(0.25), figures.rate(0.5), figures.area(0.5)]

    def row(name: str, runs: Mapping[int, Run]) -> list[str]:
        means = [cell([f(run) for run in runs.values()]) for f in columns]
        change = "" if runs is reference else cell(differences(columns[-1], runs, reference), sign="+")
        ahead = cell(differences(columns[-1], runs, results[BASELINE]), sign="+")
        unsound = cell([figures.unsound(EARLY)(run) for run in runs.values()])
        cost = [
            cell([figures.spent(what, 0.5)(run) for run in runs.values()], digits=0)
            for what in ("cpu", "critique_tokens")
        ]
        return [name, *means, change, ahead, unsound, *cost]

    seeds = max(arm.seeds for arm in ablation.arms.values())
    reference = {seed: run for seed, run in results[ablation.reference].items() if seed < seeds}
    rows = [row(ablation.reference, reference), *(row(name, results[name]) for name in ablation.arms)]
    head = ["arm", *map(figures.step, QUARTERS[1:3]), "area", "difference in area, by seed"]
    head += [f"to {BASELINE}", "unsound, early", "CPU s", "critique tokens"]
    return f"**{ablation.title}**\n\n{markdown_table(head, rows)}"


def world_table(results: Results, figures: Figures) -> str:
    columns = [figures.rate(0.0), figures.rate(0.25), figures.rate(0.5), figures.area(0.5)]
    rows = []
    for world in (0, *WORLDS):
        seeds = range(ARMS[in_world(BASELINE, WORLDS[0])].seeds)
        arms = {name: {s: r for s, r in results[in_world(name, world)].items() if s in seeds} for name in COMPARED}
        for name, runs in arms.items():
            means = [cell([f(run) for run in runs.values()]) for f in columns]
            change = "" if name == BASELINE else cell(differences(columns[-1], runs, arms[BASELINE]), sign="+")
            rows.append([str(world), name, *means, change])
    return markdown_table(
        ["world", "arm", *map(figures.step, QUARTERS[:3]), "area", f"area, difference to {BASELINE} by seed"], rows
    )


def missing(results: Results) -> str:
    """Arms with missing runs, and the number of runs they have."""
    have = {name: len(results[name]) for name in ARMS}
    return ", ".join(f"{name} {have[name]} of {arm.seeds}" for name, arm in ARMS.items() if have[name] < arm.seeds)


def page(results: Results, plan: Plan) -> str:
    """All tables as Markdown."""
    figures, lacking, main = Figures(plan), missing(results), {name: results[name] for name in MAIN}
    timeouts = sum(run["timeouts"] for runs in results.values() for run in runs.values())
    quarter = plan.rollouts // 4
    parts = [
        "# Evidence: all tables\n",
        f"`python -m bench.evidence`: {plan.steps} steps of {plan.prompts} prompts x {plan.n} rollouts "
        f"({plan.rollouts:,} rollouts), sampled pass@1 on {plan.problems} held-out problems. Mean ± half of the 95 % "
        "interval (Student's t) over seeds. *area*: mean of pass@1 over the steps shown. *unsound*: share of the right "
        f"answers of training rollouts that contain a wrong step by the rule; early: rollouts {quarter:,} to "
        f"{2 * quarter:,}, late: {3 * quarter:,} to {4 * quarter:,}. dapo resamples groups that tie: its "
        "columns are at equal rollouts, interpolated between evaluations 2 steps apart. "
        f"Answers left out because their check timed out: {timeouts}.\n",
        f"**Not finished: {lacking}.**\n" if lacking else "",
        f"## Main arms, {MAIN[BASELINE].seeds} seeds\n",
        curve_table(main, figures),
        f"### Difference to {BASELINE}, paired by seed\n",
        difference_table(main, figures),
        "### Sound steps, and the critic against the rule\n",
        soundness_table(main, figures),
        "### Seconds of training until the budget is drawn\n",
        "Without evaluation and checkpoints; one core per arm. CPU is of the training process (not of the worker that "
        "checks answers). During wall time another arm runs on the same machine. The stages are of the whole run; "
        "their sync includes the pushes for evaluations. pass@1 is given after half and after all of the CPU time of "
        f"{BASELINE}, linearly interpolated between two evaluations.\n",
        seconds_table(main, figures),
        f"## Ablations, the first {plan.steps // 2} steps\n",
        *(ablation_table(ablation, results, figures) for ablation in ABLATIONS),
        "## Other base checkpoints and task worlds\n",
        "Each world has its own misconceptions, problems and pretraining (`python -m capo_fast.tiny --seed WORLD`); "
        f"0 is the shipped one. The first {plan.steps // 2} steps.\n",
        world_table(results, figures),
    ]
    return "\n".join(part for part in parts if part)


def as_json(results: Results, plan: Plan) -> str:
    """The plan, the machines and commits, the arms and every run, one on a line."""
    every = [run for runs in results.values() for run in runs.values()]
    abouts = [json.loads(line) for line in sorted({json.dumps(run["about"]) for run in every})]
    head = {"command": "python -m bench.evidence", "plan": asdict(plan), "about": abouts}
    head["arms"] = {name: asdict(arm) for name, arm in ARMS.items()}
    lines = [
        json.dumps({"arm": name, "seed": seed} | {key: value for key, value in run.items() if key != "about"})
        for name, runs in results.items()
        for seed, run in runs.items()
    ]
    return json.dumps(head, indent=1)[:-2] + ',\n "runs": [\n' + ",\n".join(lines) + "\n ]\n}\n"
