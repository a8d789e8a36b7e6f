"""Tables and plot of bench.words, from the existing shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.evidence.arms import BASELINE, Plan
from bench.evidence.plot import save_plot
from bench.evidence.report import (
    Figures,
    Results,
    cell,
    curve_table,
    difference_table,
    seconds_table,
    soundness_table,
)
from bench.words.arms import ARMS, PLAN, SEEDS
from bench.words.critics import critics_table
from bench.words.places import Places
from capo_fast.markdown import markdown_table

PANELS = {"By rollouts": (False, tuple(ARMS)), "By CPU time": (True, tuple(ARMS))}


def load_shards(places: Places) -> Results:
    """All finished shards of the reported seeds."""
    paths = {(arm, seed): places.shard(arm, seed) for arm in ARMS for seed in SEEDS}
    found: Results = {arm: {} for arm in ARMS}
    for (arm, seed), path in paths.items():
        if path.exists():
            found[arm][seed] = json.loads(path.read_text())
    return found


def write_tables(places: Places) -> str:
    """Write `words.md` and, if there are shards, `words.png`; returns the page."""
    results = load_shards(places)
    base, critics = (read_json(places.results / f"{name}.json") for name in ("base", "critics"))
    text = page(results, base, critics)
    places.results.mkdir(parents=True, exist_ok=True)
    (places.results / "words.md").write_text(text)
    if any(results.values()):
        save_plot(results, Figures(plan_of(results)), places.results / "words.png", PANELS)
    return text


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}


def plan_of(results: Results) -> Plan:
    """The common plan of the shards. Raises ValueError."""
    plans = {json.dumps(run["plan"]) for runs in results.values() for run in runs.values()}
    if len(plans) > 1:
        raise ValueError(f"found shards of {len(plans)} plans, wanted one: {', '.join(sorted(plans))}")
    return Plan(**json.loads(plans.pop())) if plans else PLAN


def page(results: Results, base: Mapping[str, Any], critics: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    plan = plan_of(results)
    lacking = ", ".join(f"{arm} {len(runs)} of {len(SEEDS)}" for arm, runs in results.items() if len(runs) < len(SEEDS))
    parts = [
        "# A world of words: all tables\n",
        f"`python -m bench.words run`: {plan.steps} steps of {plan.prompts} prompts x {plan.n} rollouts "
        f"({plan.rollouts:,} rollouts), sampled pass@1 on {plan.problems} held-out problems. Mean ± half of the 95 % "
        "interval (Student's t) over seeds. *area*: mean of pass@1 over the run. *unsound*: share of the right answers "
        "of training rollouts that contain a wrong step by the rule, in the second and the last quarter.\n",
        f"**Not finished: {lacking}.**\n" if lacking else "",
        *(run_sections(results, Figures(plan)) if any(results.values()) else []),
        "## Generalisation\n",
        solved_table(results, base) if base or any(results.values()) else "Not measured.\n",
        "## Critics\n",
        critics_table(critics) if critics else "Not measured.\n",
    ]
    return "\n".join(part for part in parts if part)


def run_sections(results: Results, figures: Figures) -> list[str]:
    return [
        "## Arms\n",
        curve_table(results, figures),
        f"### Difference to {BASELINE}, paired by seed\n",
        difference_table(results, figures),
        f"Area of pass@1 by CPU time, from 0 to the CPU seconds of {BASELINE}:\n",
        clock_table(results, figures),
        "### Sound steps, and the critic against the rule\n",
        soundness_table(results, figures),
        "### Tokens per response\n",
        length_table(results, figures),
        "### Seconds of training\n",
        "Without evaluation and checkpoints. CPU is of the training process, wall and stages are wall seconds.\n",
        seconds_table(results, figures),
    ]


def clock_table(results: Results, figures: Figures) -> str:
    """Areas by the clock, for each seed up to the baseline's CPU time of this seed."""
    taken = {seed: figures.spent("cpu")(run) for seed, run in results[BASELINE].items()}
    areas = {
        arm: {seed: figures.area_by_time(taken[seed])(run) for seed, run in runs.items() if seed in taken}
        for arm, runs in results.items()
    }
    rows = [
        [
            arm,
            cell(list(found.values())),
            cell([area - areas[BASELINE][seed] for seed, area in found.items()], sign="+"),
        ]
        for arm, found in areas.items()
    ]
    return markdown_table(["arm", "area", f"difference to {BASELINE} by seed"], rows)


def length_table(results: Results, figures: Figures) -> str:
    """Mean tokens per response in each quarter of the run."""
    quarter = figures.plan.steps // 4
    parts = [
        (f"steps {k * quarter + 1} to {(k + 1) * quarter}", slice(k * quarter, (k + 1) * quarter)) for k in range(4)
    ]
    rows = [
        [arm, *(cell([fmean(run["response_tokens"][part]) for run in runs.values()], digits=1) for _, part in parts)]
        for arm, runs in results.items()
    ]
    return markdown_table(["arm", *(name for name, _ in parts)], rows)


def solved_table(results: Results, base: Mapping[str, Any]) -> str:
    """Greedy pass@1 of the base and after training, by set."""
    measured = {"base": [base["solved"]] if base else []}
    measured |= {arm: [run["solved"] for run in runs.values()] for arm, runs in results.items()}
    sets = list(dict.fromkeys(name for each in measured.values() for solved in each for name in solved))
    rows = [
        [arm, *(cell([greedy(solved, name) for solved in each]) for name in sets)] for arm, each in measured.items()
    ]
    return markdown_table(["after", *sets], rows)


def greedy(solved: Mapping[str, Any], name: str) -> float | None:
    return solved[name]["metrics"]["pass@1"]["value"] if name in solved else None
