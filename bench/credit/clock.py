"""The page of learning curves: gains over GRPO by rollouts and by the clock, and the cost of critiques.

"By the clock" is the mean of pass@1 from 0 to the mean CPU seconds of GRPO's runs. CPU seconds include the processes
that a run started. Differences are paired by seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.credit.arms import ARMS, FIRST_REPORTED, GRPO, PLAIN_CAPO
from bench.credit.frontier import save_frontier
from bench.credit.goal import goal_part
from bench.credit.table import commits
from bench.evidence.arms import Plan
from bench.evidence.report import Figure, Figures, Results, Run, cell, differences
from capo_fast.markdown import markdown_table


def write_page(out: Path) -> str:
    """Write `clock.md` and `clock.png` from the existing runs; returns the page."""
    results, plan = read_runs(out / "runs")
    if GRPO not in results:
        return f"no run of {GRPO} in {out / 'runs'}: nothing to compare with"
    figures = Figures(plan, "cpu_all")
    seconds = fmean(figures.spent(figures.cpu)(run) for run in results[GRPO].values())
    text = page(results, figures, seconds)
    (out / "clock.md").write_text(text)
    save_frontier(results, figures, seconds, out / "clock.png")
    return text


def read_runs(folder: Path) -> tuple[Results, Plan]:
    """The reported runs by arm and seed, and their plan. Raises ValueError for several plans or commits."""
    every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    runs = [run for run in every if run["seed"] >= FIRST_REPORTED]
    found: Results = {name: {} for name in ARMS}
    for run in runs:
        found[run["arm"]][run["seed"]] = run
    only_one(folder, "commits", [run["about"]["commit"] for run in runs])
    plan = only_one(folder, "plans", [run["plan"] for run in runs])
    return {name: of for name, of in found.items() if of}, Plan(**(plan or {}))


def only_one(folder: Path, what: str, values: Sequence[Any]) -> Any:
    """The one distinct value; None if there are no values. Raises ValueError for several."""
    different = list({json.dumps(value): value for value in values}.values())
    if len(different) > 1:
        raise ValueError(f"{folder}: found runs of {len(different)} {what}, wanted one")
    return different[0] if different else None


HEAD = ["arm", "seeds", "pass@1, last", "area", "gain in area", "gain by the clock", "of the oracle's"]
HEAD += ["CPU s", "wall s", "critique tokens written", "of plain CAPO's"]
HEAD += ["read, not cached", "of plain CAPO's", "read for `ambiguous`"]


def page(results: Results, figures: Figures, seconds: float) -> str:
    """seconds: CPU time at which the area by the clock ends."""
    rows, plan = [[name, *row(name, results, figures, seconds)] for name in results], figures.plan
    made = commits([run for runs in results.values() for run in runs.values()])
    return (
        f"# Learning by rollouts and by the clock\n\n`python -m bench.credit.learn`: {plan.steps} steps of "
        f"{plan.prompts} prompts x {plan.n} rollouts, sampled pass@1 on {plan.problems} held-out problems. Mean ± half "
        f"of the 95 % interval (Student's t) over seeds. Gains are over {GRPO}, GRPO's arm, paired by seed. "
        f"{PLAIN_CAPO} is plain CAPO. Seeds from {FIRST_REPORTED} on. *area*: mean of pass@1 by rollouts. *By the "
        f"clock*: mean of pass@1 from 0 to the {seconds:.1f} CPU s of {GRPO}, including the processes that a run "
        f"started, without evaluation; {made}.\n\n{goal_part(results, figures, seconds)}\n"
        f"## Every arm\n\n{markdown_table(HEAD, rows, right=HEAD[1:])}\n"
        "![Learning curves by CPU seconds and by rollouts, with 95 % bands](clock.png)\n"
    )


def row(name: str, results: Results, figures: Figures, seconds: float) -> list[str]:
    runs = results[name].values()
    area, clock = figures.area(1.0), figures.area_by_time(seconds)
    means = [cell([figure(run) for run in runs]) for figure in (figures.rate(1.0), area)]
    gains = [gain(name, results, figure) for figure in (area, clock)]
    return [str(len(runs)), *means, *gains, share_of(clock, name, results), *costs(name, results, figures)]


def costs(name: str, results: Results, figures: Figures) -> list[str]:
    runs = list(results[name].values())
    times = [cell([figures.spent(what)(run) for run in runs], digits=1) for what in (figures.cpu, "wall")]
    tokens = [
        text for what in WRITTEN_AND_READ for text in (total(what, runs, figures), ratio(what, name, results, figures))
    ]
    return [*times, *tokens, total("profile_tokens", runs, figures)]


WRITTEN_AND_READ = ("critique_tokens", "critique_read")


def total(what: str, runs: Sequence[Run], figures: Figures) -> str:
    """Tokens per run; a dash if no run has the figure, which older runs did not record."""
    return cell([figures.spent(what)(run) for run in runs if what in run], digits=0)


def gain(name: str, results: Results, figure: Figure) -> str:
    return "" if name == GRPO else cell(differences(figure, results[name], results[GRPO]), sign="+")


def share_of(figure: Figure, name: str, results: Results) -> str:
    """The mean gain divided by the oracle's, over the seeds of both."""
    if name == GRPO or "oracle" not in results:
        return ""
    common = {seed: run for seed, run in results[name].items() if seed in results["oracle"]}
    oracle = {seed: results["oracle"][seed] for seed in common}
    gains = [differences(figure, runs, results[GRPO]) for runs in (common, oracle)]
    return f"{fmean(gains[0]) / fmean(gains[1]):.0%}" if all(gains) else ""


def ratio(what: str, name: str, results: Results, figures: Figures) -> str:
    """Tokens divided by those of plain CAPO, over the seeds of both; empty if there are none."""
    tokens, plain = figures.spent(what), results.get(PLAIN_CAPO, {})
    pairs = [(run, plain[seed]) for seed, run in results[name].items() if what in run and what in plain.get(seed, {})]
    spent = sum(tokens(other) or 0 for _, other in pairs)
    return f"{sum(tokens(run) or 0 for run, _ in pairs) / spent:.1%}" if spent else ""
