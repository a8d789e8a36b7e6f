"""Checked answers -> scores of each problem -> scores of each benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capo_fast.evaluation.majority import Equal, majority_scores
from capo_fast.evaluation.questions import Question
from capo_fast.evaluation.solving import Attempt, Checked
from capo_fast.evaluation.store import Answer
from capo_fast.statistics import macro_interval, mean, mean_interval, pass_at_k
from capo_fast.verify.functions import is_right

Scores = dict[str, float | None]
"""Scores of one problem by metric; None if time-outs left nothing (or too little) to score."""


def equal_letters(pairs: list[tuple[str, str]]) -> list[bool]:
    return [a == b for a, b in pairs]


def score_benchmark(
    questions: Sequence[Question],
    attempts: Sequence[Attempt],
    answers: Mapping[str, Answer],
    checked: Mapping[str, Checked],
    equal: Equal,
) -> dict[str, Any]:
    """The entry of one benchmark in `results.json`."""
    greedy, sampled = (_by_question(attempts, checked, kind) for kind in (True, False))
    scores: dict[str, Scores] = {q.id: {"pass@1": _mean_of(greedy[q.id], is_right)} for q in questions}
    if any(0 < float(answer.right or 0) < 1 for found in greedy.values() for answer in found):
        for question in questions:
            scores[question.id] |= {"reward": _mean_of(greedy[question.id], float)}
    counts = _counts(attempts, answers, checked)
    k = max((len(sampled.get(q.id, [])) for q in questions), default=0)
    if k:
        votes = [[(c.vote, is_right(c.right)) for c in sampled[q.id] if c.right is not None] for q in questions]
        majorities, counts["unsettled_comparisons"] = majority_scores(votes, equal)
        for question, valid, majority in zip(questions, votes, majorities, strict=True):
            scores[question.id] |= {f"avg@{k}": _mean_of(sampled[question.id], is_right)}
            scores[question.id] |= {f"maj@{k}": majority if valid else None}
            scores[question.id] |= {f"pass@{j}": _pass(valid, j) for j in _powers(k)}
    return {"problems": len(questions), "metrics": summarise(scores), "counts": counts, "by_problem": scores}


def summarise(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Each metric's mean over problems, its 95 % interval, and the number of problems with a score."""
    metrics = list(next(iter(scores.values()), {}))
    values = {name: [v for row in scores.values() if (v := row[name]) is not None] for name in metrics}
    return {name: _estimate(mean(found), mean_interval(found), len(found)) for name, found in values.items()}


def macro_mean(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Unweighted mean over the benchmarks, for every metric that all of them have."""
    entries = list(benchmarks.values())
    shared = [
        name for name in entries[0]["metrics"] if all(e["metrics"].get(name, {}).get("problems") for e in entries)
    ]
    means = {}
    for name in shared:
        groups = [[v for row in e["by_problem"].values() if (v := row[name]) is not None] for e in entries]
        means[name] = _estimate(mean([mean(group) for group in groups]), macro_interval(groups), sum(map(len, groups)))
    return means


def _estimate(value: float, interval: tuple[float, float] | None, problems: int) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"value": value if problems else None, "low": low, "high": high, "problems": problems}


def _by_question(attempts: Sequence[Attempt], checked: Mapping[str, Checked], greedy: bool) -> dict[str, list[Checked]]:
    found: dict[str, list[Checked]] = {}
    for attempt in attempts:
        if attempt.greedy == greedy:
            found.setdefault(attempt.question.id, []).append(checked[attempt.name])
    return found


def _mean_of(answers: Sequence[Checked], score: Callable[[bool | float], float]) -> float | None:
    """The mean score of the verdicts; None if there is none."""
    scores = [float(score(answer.right)) for answer in answers if answer.right is not None]
    return mean(scores) if scores else None


def _pass(votes: Sequence[tuple[str | None, bool]], k: int) -> float | None:
    return pass_at_k(len(votes), sum(right for _, right in votes), k) if k <= len(votes) else None


def _powers(k: int) -> list[int]:
    """2, 4, 8 ... up to k, and k: pass@1 of the samples is avg@k.

    >>> _powers(6), _powers(1)
    ([2, 4, 6], [])
    """
    return sorted({2**i for i in range(1, k.bit_length()) if 2**i <= k} | ({k} - {1}))


def _counts(
    attempts: Sequence[Attempt], answers: Mapping[str, Answer], checked: Mapping[str, Checked]
) -> dict[str, int | float]:
    mine = [(answers[attempt.name], checked[attempt.name]) for attempt in attempts]

    def count(condition: Callable[[Answer, Checked], bool]) -> int:
        return sum(condition(answer, check) for answer, check in mine)

    return {
        "answers": len(mine),
        "truncated": count(lambda answer, _: not answer.finished),
        "timeouts": count(lambda _, check: check.right is None),
        "unreadable": count(lambda _, check: check.vote is None),
        "prompt_tokens": sum(answer.prompt_tokens for answer, _ in mine),
        "tokens": sum(answer.tokens for answer, _ in mine),
    }
