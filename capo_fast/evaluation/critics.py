"""Critiques of labelled solutions -> a critic's scores at finding wrong steps, by voting and number of votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capo_fast.credit.vote import MODES, vote
from capo_fast.evaluation.labelled import APART, Solution
from capo_fast.evaluation.scores import Scores, summarise
from capo_fast.evaluation.store import Answer
from capo_fast.records import Critique
from capo_fast.statistics import agreement, f1_interval, harmonic_mean, mean, wilson

GREEDY = "greedy"
ANY = "any"
"""With one sampled vote all rules except greedy coincide."""


@dataclass(frozen=True)
class Requests:
    """What a solution's critiques took."""

    answered: int = 0
    """Requests; with critic.reads: step one per step."""
    cut: int = 0
    """Of them, cut at the limit of tokens. They may have been read."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Critiques that abstained, also for want of room, by reason."""


@dataclass(frozen=True)
class Judged:
    """A solution with all its critiques."""

    solution: Solution
    sampled: tuple[Critique, ...]
    """The k votes, in the order of their seeds."""
    greedy: Critique
    """One critique at temperature 0."""
    answers: tuple[Answer | None, ...]
    """The answers with the critiques, the greedy one last; None if the engine had no room for the prompt."""
    requests: Requests = Requests()

    def critiques(self, voting: str, k: int) -> tuple[Critique, ...]:
        """The first k votes."""
        return (self.greedy,) if voting == GREEDY else self.sampled[:k]

    def first_error_found(self, voting: str, k: int) -> float:
        """1 if the first step judged wrong is the labelled one (or both are none), else 0; an abstention scores 0."""
        return float(self.first_wrong(voting, k) == self.solution.first_wrong)

    def first_wrong(self, voting: str, k: int) -> int | None:
        """The first step judged wrong, -1 for none; None for an abstention: a step up to it has no verdict."""
        for step, held in enumerate(self.held(voting, k)):
            if held is None or held >= 0.5:
                return None if held is None else step
        return -1

    def held(self, voting: str, k: int) -> list[float | None]:
        """[S], the vote on each step; None if no critique judges it."""
        critiques, steps = self.critiques(voting, k), len(self.solution.steps)
        votes = vote(critiques, steps, "union" if voting == ANY else voting)
        known = [any(each.judges(step) for each in critiques) for step in range(steps)]
        return [held if judged else None for held, judged in zip(votes, known, strict=True)]


def score_set(judged: Sequence[Judged], headline: str) -> dict[str, Any]:
    """The entry of one data set in `results.json`. `headline`: the voting of the table of subsets."""
    k = len(judged[0].sampled)
    whole = [j for j in judged if j.solution.subset not in APART] or list(judged)
    by_subset = {
        name: score_voting([j for j in judged if j.solution.subset == name], headline, k or 1)
        for name in sorted({j.solution.subset for j in judged})
    }
    rows = [score_voting(whole, voting, votes) for voting, votes in votings(k)]
    names = {GREEDY: (GREEDY, 1)} | ({} if headline == GREEDY else {f"{headline}@{k}": (headline, k)})
    hits: dict[str, Scores] = {
        j.solution.id: {name: j.first_error_found(*how) for name, how in names.items()} for j in whole
    }
    return {
        "problems": len(whole),
        "scored_apart": len(judged) - len(whole),
        "votings": rows,
        "subsets": by_subset if len(by_subset) > 1 else {},
        "agreement": _agreements(whole),
        "counts": _counts(judged),
        "metrics": summarise(hits),
        "by_problem": hits,
    }


def votings(k: int) -> list[tuple[str, int]]:
    """Every voting and number of votes that has a row. k: sampled votes."""
    if k == 0:
        return [(GREEDY, 1)]
    several = [(mode, votes) for mode in MODES if mode != GREEDY for votes in range(2, k + 1)]
    return [(GREEDY, 1), (ANY, 1), *several]


def is_of(row: Mapping[str, Any], metric: str) -> bool:
    """Whether a row of `votings` has the voting of this metric of `by_problem`."""
    return metric in (row["voting"], f"{row['voting']}@{row['votes']}")


def score_voting(judged: Sequence[Judged], voting: str, k: int) -> dict[str, Any]:
    """ProcessBench's F1 (by first error) with its two accuracies, precision and recall by step, abstentions, cost.

    An abstention counts as no first error found, even on a right solution, as ProcessBench counts unreadable answers:
    all critiques abstain, or no step is judged wrong before one on which all abstain. By step, steps without a verdict
    are left out, and `average` counts each step by its vote. For the first error a step is wrong from a vote of 0.5.
    A score that the labels don't allow is None: F1 without right solutions (recall only), and precision and recall by
    step if not all wrong steps are labelled.
    """
    wrong, right = ([j for j in judged if (j.solution.first_wrong >= 0) == is_wrong] for is_wrong in (True, False))
    hits = [(sum(j.first_error_found(voting, k) == 1.0 for j in part), len(part)) for part in (wrong, right)]
    shares = [_share(*part) for part in hits]
    f1 = None
    if wrong and right:
        low, high = f1_interval(hits[0], hits[1])
        f1 = {"value": harmonic_mean(shares[0]["value"], shares[1]["value"]), "low": low, "high": high}
    precision, recall = _by_step(judged, voting, k)
    return {
        "voting": voting,
        "votes": k,
        "f1": f1,
        "accuracy_on_wrong": shares[0],
        "accuracy_on_right": shares[1],
        "step_precision": precision,
        "step_recall": recall,
        "abstained": sum(j.first_wrong(voting, k) is None for j in judged) / len(judged),
        **_cost(judged, voting, k),
    }


def _by_step(judged: Sequence[Judged], voting: str, k: int) -> tuple[float | None, float | None]:
    found = named = there = 0.0
    for j in judged:
        truth = j.solution.wrong_steps
        if truth is None:
            return None, None
        votes = {step: held for step, held in enumerate(j.held(voting, k)) if held is not None}
        found += sum(held for step, held in votes.items() if step in truth)
        named += sum(votes.values())
        there += len(truth & votes.keys())
    return found / named if named else None, found / there if there else None


def _share(hits: int, out_of: int) -> dict[str, Any]:
    low, high = wilson(hits / out_of, out_of) if out_of else (None, None)
    return {"value": hits / out_of if out_of else None, "low": low, "high": high, "problems": out_of}


def _cost(judged: Sequence[Judged], voting: str, k: int) -> dict[str, float]:
    """Tokens per solution: in prompts (one per vote) and in answers."""
    answers = [a for j in judged for a in (j.answers[-1:] if voting == GREEDY else j.answers[:k]) if a is not None]
    tokens_in, tokens_out = sum(a.prompt_tokens for a in answers), sum(a.tokens for a in answers)
    return {"tokens_in": tokens_in / len(judged), "tokens_out": tokens_out / len(judged)}


def _agreements(judged: Sequence[Judged]) -> dict[str, float | None]:
    """Agreement of the sampled votes that don't abstain: on each step, and on whether a solution has a wrong step."""
    steps, solutions = [], []
    for j in judged:
        every = range(len(j.solution.steps))
        for step in every:
            verdicts = [step in each.wrong_steps for each in j.sampled if each.judges(step)]
            steps.append((sum(verdicts), len(verdicts)))
        known = [bool(c.wrong_steps) for c in j.sampled if c.wrong_steps or all(map(c.judges, every))]
        solutions.append((sum(known), len(known)))
    by_step, step_kappa = agreement(steps)
    by_solution, solution_kappa = agreement(solutions)
    return {"step": by_step, "step_kappa": step_kappa, "solution": by_solution, "solution_kappa": solution_kappa}


def _counts(judged: Sequence[Judged]) -> dict[str, Any]:
    critiques = [critique for j in judged for critique in (*j.sampled, j.greedy)]
    answers = [answer for j in judged for answer in j.answers if answer is not None]
    return {
        "requests": sum(j.requests.answered for j in judged),
        "cut": sum(j.requests.cut for j in judged),
        "unread": dict(sum((Counter(j.requests.unread) for j in judged), Counter[str]())),
        "critiques": len(critiques),
        "abstained": sum(critique.abstained for critique in critiques),
        "truncated": sum(critique.truncated for critique in critiques),
        "without_room": len(critiques) - len(answers),
        "out_of_range": sum(critique.dropped for critique in critiques),
        "tokens_in": sum(answer.prompt_tokens for answer in answers),
        "tokens_out": sum(answer.tokens for answer in answers),
        "seconds": sum(answer.seconds for answer in answers),
    }


def subset_mean(entry: Mapping[str, Any]) -> float | None:
    """Mean of the subsets' F1, ProcessBench's headline; None unless every subset has one."""
    f1s = [row["f1"] for row in entry["subsets"].values()]
    return mean([f1["value"] for f1 in f1s]) if f1s and all(f1s) else None
