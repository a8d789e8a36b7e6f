"""Forms of the critic's answer on labelled solutions of the tiny world: scores and cost of each.

Each solution gets one critique, requested as in training and scored as by `capo critic-eval`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from bench.credit import worlds
from bench.credit.crediting import Bench, critiqued, open_bench, write_shard
from bench.credit.given import Labelled, as_sample
from capo_fast.evaluation.critics import ANY, Judged, score_voting
from capo_fast.evaluation.labelled import TINY, Solution, load_solutions
from capo_fast.loaders import load_critic_template
from capo_fast.records import Critique
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.stream import Traffic
from capo_fast.runtime.stages import cpu_seconds, descendants
from capo_fast.tiny.task import World, draw_question, true_wrong_steps

COUNT = 400
"""Solutions."""
PASSES = 3
"""Passes over the solutions; the reported CPU seconds are their median."""
MOST_OPS = 4
"""Operations of a short problem: two solutions fit into one prompt (the critic's tokenizer has tags for ten steps)."""


@dataclass(frozen=True)
class Form:
    """One line of the table."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    short: bool = False
    """Two solutions each of COUNT / 2 short problems, instead of one each of COUNT problems."""
    together: int = 1
    """Solutions of a problem per prompt, as one list of steps."""


FORMS = {
    "whole solution": Form(),
    "whole, temperature 0": Form({"critic.temperature": 0}),
    "whole, stopped at the verdict": Form({"critic.stop": "Judgment: Yes,</incorrect_steps>"}),
    "whole, structured": Form({"critic.structured": "true"}),
    "whole, at most 48 tokens": Form({"critic.max_tokens": 48}),
    "single steps": Form({"critic.reads": "step"}),
    "single steps, verdict first": Form({"critic.reads": "step", "critic.step.max_tokens": 1}),
    "whole, short problems": Form(short=True),
    "two solutions in one prompt": Form(short=True, together=2),
}


def make_formats(out: Path, seed: int) -> None:
    """Write the file of all forms, unless it exists."""
    path = out / "formats" / f"{seed}.json"
    if path.exists():
        return
    with open_bench(worlds.TINY.config({}, seed)) as bench:
        solutions = {short: solutions_of(short, seed) for short in (False, True)}
        forms = {name: scored(bench, form, solutions[form.short], seed) for name, form in FORMS.items()}
        write_shard(path, {"seed": seed, "solutions": COUNT, "forms": forms})


def solutions_of(short: bool, seed: int) -> list[Solution]:
    return list(short_pairs(seed)) if short else load_solutions([TINY], None, COUNT, seed)[TINY]


def short_pairs(seed: int) -> Iterator[Solution]:
    """Two solutions of each problem, one after the other."""
    rng, world = Random(f"pairs of solutions {seed}"), World.from_seed(0)
    for problem in range(COUNT // 2):
        question = draw_question(rng, max_ops=MOST_OPS)
        for number in range(2):
            steps = tuple(world.solution(rng, question))
            wrong = true_wrong_steps(question, steps)
            yield Solution(f"{problem}-{number}", question, steps, min(wrong, default=-1), wrong, TINY)


def scored(bench: Bench, form: Form, solutions: Sequence[Solution], seed: int) -> dict[str, Any]:
    """Scores over the solutions; tokens and CPU seconds per solution."""
    passes = [critique_all(bench, form, solutions, seed) for _ in range(PASSES)]
    critiques, traffic, _ = passes[0]
    judged = [Judged(of, (critique,), critique, ()) for of, critique in zip(solutions, critiques, strict=True)]
    found = score_voting(judged, ANY, 1)
    costs = {
        "read": traffic.critique_prompt_tokens,
        "cached": traffic.critique_cached_tokens,
        "written": traffic.critique_tokens,
        "cpu_s": median(seconds for *_, seconds in passes),
    }
    return {key: found[key] for key in ("f1", "step_precision", "step_recall", "abstained")} | {
        key: value / len(solutions) for key, value in costs.items()
    }


def critique_all(
    bench: Bench, form: Form, solutions: Sequence[Solution], seed: int
) -> tuple[list[Critique], Traffic, float]:
    """A critique per solution, the engine's traffic, and CPU seconds."""
    config = worlds.TINY.config(form.settings, seed)
    builder = RequestBuilder(bench.tokenizer, load_critic_template(config), config)
    groups = [solutions[at : at + form.together] for at in range(0, len(solutions), form.together)]
    samples = [as_sample(builder, Labelled(joined(each), None, None), at, False) for at, each in enumerate(groups)]
    bench.engine.forget_prefixes()
    started = cpu_seconds(descendants())
    judged, traffic = critiqued(bench.engine, builder, [each for each in samples if each is not None])
    seconds = cpu_seconds(descendants()) - started
    found = [apart(each.critiques[0], group) for each, group in zip(judged, groups, strict=True)]
    return [critique for each in found for critique in each], traffic, seconds


def joined(group: Sequence[Solution]) -> Solution:
    """Solutions of a group as one solution with all their steps, as in the critic's prompt."""
    return replace(group[0], steps=tuple(step for each in group for step in each.steps), wrong_steps=None)


def apart(critique: Critique, group: Sequence[Solution]) -> list[Critique]:
    """A critique of several solutions, split into one per solution."""
    starts = [sum(len(each.steps) for each in group[:place]) for place in range(len(group) + 1)]
    return [
        replace(critique, wrong_steps=frozenset(k - first for k in critique.wrong_steps if first <= k < last))
        for first, last in pairwise(starts)
    ]
