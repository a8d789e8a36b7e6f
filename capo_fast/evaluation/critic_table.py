"""The scores of a critic as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capo_fast.evaluation.command import estimate
from capo_fast.evaluation.critics import is_of, subset_mean
from capo_fast.evaluation.labelled import APART
from capo_fast.markdown import markdown_table


def results_table(results: Mapping[str, Any]) -> str:
    """A Markdown table per data set, by voting and by subset, with a legend."""
    settings = results["settings"]
    sections = [_section(name, entry, settings) for name, entry in results["benchmarks"].items()]
    legend = (
        f"{settings['model']}, seed {settings['seed']}, votes at temperature {settings['critic.temperature']:g}, "
        f"top-p {settings['critic.top_p']:g}.\n"
        "F1 is the harmonic mean of the accuracies by first error on wrong and on right solutions (an abstention is\n"
        "an error); precision and recall are by step, over solutions with a verdict; in brackets 95 % intervals.\n"
        "any: the first vote alone, on which all rules agree. average: by first error a step is wrong from a mean\n"
        "vote of 0.5. A dash: the labels don't allow it, or nothing to count. The column abstained counts solutions;\n"
        "the line below the table counts requests. Tokens in (prompts, one per vote) and out are means per solution.\n"
        "Indices out of range are dropped; a critique without others abstains."
    )
    return "\n".join([*sections, legend]) + "\n"


HEAD = ["voting", "votes", "F1", "on wrong", "on right", "precision", "recall", "abstained", "tokens in", "tokens out"]


def _section(name: str, entry: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    counts, agreement = entry["counts"], entry["agreement"]
    configured = list(entry["metrics"])[-1]
    votings = [_row(row, " (as configured)" if is_of(row, configured) else "") for row in entry["votings"]]
    parts = [f"## {name}: {entry['problems']} solutions\n", _table(HEAD, votings)]
    if entry["subsets"]:
        rows = [[subset, *_row(row)[2:]] for subset, row in entry["subsets"].items()]
        row = next(iter(entry["subsets"].values()))
        parts += [f"By subset, {row['voting']}, votes: {row['votes']}.\n", _table(["subset", *HEAD[2:]], rows)]
    if (average := subset_mean(entry)) is not None:
        parts.append(f"Mean F1 of the subsets: {average:.3f}.")
    if entry["scored_apart"]:
        parts.append(f"{entry['scored_apart']} solutions in {', '.join(APART)}, where marked steps need not be false,")
        parts.append("count only in their own subsets.")
    if entry["votings"][0]["f1"] is None:
        wrong = entry["votings"][0]["accuracy_on_wrong"]["problems"]
        parts.append("Wrong solutions only: recall, no F1." if wrong else "Right solutions only: no recall, no F1.")
    if agreement["step"] is not None:
        parts.append(
            f"Votes agree on {agreement['step']:.3f} of steps (Fleiss' kappa {_number(agreement['step_kappa'])}) "
            f"and on {_number(agreement['solution'])} of verdicts (kappa {_number(agreement['solution_kappa'])})."
        )
    parts.append(_requests(counts, settings) + "\n")
    return "\n".join(parts)


def _requests(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What was requested, cut and not read."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["unread"].items())
    limit = "critic.step.max_tokens" if settings["critic.reads"] == "step" else "critic.max_tokens"
    found = [
        f"{counts['requests']} requests, {counts['cut']} cut at {limit} ({settings[limit]}), "
        + (f"{sum(counts['unread'].values())} critiques not read ({reasons})" if reasons else "all critiques read"),
        f"{counts['out_of_range']} indices out of range",
        f"{counts['tokens_in']} tokens in, {counts['tokens_out']} out, {counts['seconds']:.1f} s.",
    ]
    return "; ".join(found)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows, padded=True)


def _row(row: Mapping[str, Any], mark: str = "") -> list[str]:
    scores = [estimate(row[key]) for key in ("f1", "accuracy_on_wrong", "accuracy_on_right")]
    by_step = [_number(row[key]) for key in ("step_precision", "step_recall")]
    cost = [f"{row[key]:.0f}" for key in ("tokens_in", "tokens_out")]
    return [row["voting"] + mark, str(row["votes"]), *scores, *by_step, f"{row['abstained']:.1%}", *cost]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
