"""Metrics -> the page's small multiples: one chart per quantity, one colour per run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capo_fast.report.charts import COLOURS, DASHES, Series, as_json, as_text
from capo_fast.report.credit_map import CreditMap
from capo_fast.report.runs import Run
from capo_fast.report.stages import stage_charts
from capo_fast.runtime.files import finite

Line = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One small multiple. Each of `lines` is a name and a function of a line of metrics."""

    title: str
    note: str
    lines: tuple[tuple[str, Callable[[Line], float | None]], ...]
    keys: tuple[str, ...]
    """The metrics that it shows."""
    error: str | None = None
    """The metric that holds the standard error."""
    percent: bool = False
    """Values are shares, shown in percent."""


def _get(key: str) -> Callable[[Line], float | None]:
    return lambda line: finite(line.get(key))


def _chart(title: str, note: str, *keys: str, error: str | None = None, percent: bool = False) -> Chart:
    lines = tuple((key.split("/")[-1].replace("_", " "), _get(key)) for key in keys)
    return Chart(title, note, lines, (*keys, error) if error else keys, error, percent)


def _ratio(title: str, note: str, key: str, whole: str) -> Chart:
    """`key` as a share of `whole`; None if there is no whole."""

    def share(line: Line) -> float | None:
        part, all_ = finite(line.get(key)), finite(line.get(whole))
        return part / all_ if part is not None and all_ else None

    return Chart(title, note, ((title, share),), (key, whole), percent=True)


def _wrong_steps(line: Line) -> float | None:
    """None without critiques: no step was judged, and a rate of 0 would read as all steps correct."""
    return finite(line.get("wrong_step_rate")) if line.get("critic/critiques") else None


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Fine-tuning": (
        _chart("Loss", "nats per token of the answers", "loss"),
        _chart("Loss, held out", "nats per token of the answers", "eval/loss"),
    ),
    "Learning": (
        _chart("pass@1, held out", "± standard error", "eval/pass@1", error="eval/stderr"),
        _chart("Pass rate of rollouts", "share of right answers", "pass_rate"),
        _chart("Reward", "mean, with format bonus and length penalty", "reward_mean"),
        _chart("Response length", "tokens, mean", "response_tokens_mean"),
        _chart("Cut by the length limit", "share of rollouts", "truncated_frac", percent=True),
        _chart("Steps", "mean per rollout", "steps_mean"),
    ),
    "Speed": (
        _chart("Throughput", "response tokens per second, without evaluation", "tokens_per_s"),
        _chart("Memory", "GiB, peak so far", "memory_gb"),
    ),
    "Critic": (
        Chart("Steps voted wrong", "share of steps", (("wrong", _wrong_steps),), ("wrong_step_rate",), percent=True),
        _ratio("Abstained", "share of critiques", "critic/abstained", "critic/critiques"),
        _ratio("Truncated", "share of critiques", "critic/truncated", "critic/critiques"),
        _ratio("Out-of-range indices", "a critique", "critic/out_of_range", "critic/critiques"),
        _chart("Verifier time-outs", "rollouts, and in evaluation (dotted)", "verify/timeouts", "eval/timeouts"),
    ),
    "Policy": (
        _chart("Entropy", "nats per token", "loss/entropy"),
        _chart("KL to the sampling policy", "nats per token", "loss/approx_kl"),
        _chart("KL to the reference", "nats per token", "loss/ref_kl"),
        _chart("Clipped", "share of tokens, below and above (dotted)", "loss/clip_low_frac", "loss/clip_high_frac"),
        _chart(
            "Trainer-engine gap",
            "of log-probs, mean and 99th percentile (dotted); includes top-p and top-k",
            "gap/mean",
            "gap/p99",
        ),
        _chart("Gradient norm", "before clipping", "grad_norm"),
        _chart("Learning rate", "", "lr"),
        _chart("Groups dropped", "all advantages 0", "groups/dropped"),
        _chart("Updates skipped", "not finite", "updates_skipped"),
    ),
}
NOT_DRAWN = {"step", "epoch", "rollouts", "policy_version", "updates", "critic/parsed", "critic/critiques"}
"""Counts that only repeat the settings, or follow from the charts."""


def sections(runs: Sequence[Run], maps: Sequence[CreditMap]) -> list[dict[str, Any]]:
    """The sections of the page: charts, and the names of those not drawn: not measured, or constant."""
    found = [_section(title, charts, runs) for title, charts in SECTIONS.items()]
    found.append(_section("Other metrics", tuple(_rest(runs)), runs))
    by_title = {section["title"]: section for section in found}
    by_title["Speed"]["charts"] = [*stage_charts(runs), *by_title["Speed"]["charts"]]
    if (chart := disagreement(runs, maps)) is not None:
        by_title["Critic"]["charts"].insert(1, chart)
    return [section for section in found if section["charts"] or section["constant"]]


def _section(title: str, charts: Iterable[Chart], runs: Sequence[Run]) -> dict[str, Any]:
    drawn, unmeasured, constant = [], [], []
    for chart in charts:
        series = _series(chart, runs)
        values = [y for each in series for y in each.y if y is not None]
        if not values:
            unmeasured.append(chart.title)
        elif set(values) == {0} or (len(set(values)) == 1 and len(values) > len(series)):
            constant.append(f"{chart.title} {as_text(values[0], chart.percent)}")
        else:
            drawn.append(as_json(chart.title, chart.note, series, chart.percent))
    return {"title": title, "charts": drawn, "unmeasured": unmeasured, "constant": constant}


def _series(chart: Chart, runs: Sequence[Run]) -> list[Series]:
    found = []
    for place, run in enumerate(runs):
        for number, (name, value) in enumerate(chart.lines):
            lines = run.metrics
            if chart.error:  # evaluations are some steps apart
                lines = [line for line in evaluated(run) if value(line) is not None]
            errors = [finite(line.get(chart.error or "")) for line in lines]
            title = run.name if len(chart.lines) == 1 else f"{run.name}, {name}"
            x, y = [line["step"] for line in lines], [value(line) for line in lines]
            measured = any(error is not None for error in errors)
            found.append(Series(title, place, *_style(place, number), x, y, errors if measured else None))
    return found


def _style(place: int, number: int) -> tuple[str, str]:
    """Colour and dash of a run's n-th line in a chart."""
    return COLOURS[place % len(COLOURS)], DASHES[(number + place // len(COLOURS)) % len(DASHES)]


def evaluated(run: Run) -> list[Line]:
    """The metrics, preceded by the evaluation at step 0, which only the summary has."""
    if run.summary.get("pass@1_before") is None:
        return run.metrics
    before = {"eval/pass@1": run.summary["pass@1_before"], "eval/stderr": run.summary.get("pass@1_before_stderr")}
    return [{"step": 0} | before, *run.metrics]


def _rest(runs: Sequence[Run]) -> list[Chart]:
    """A chart for every metric that no other chart shows."""
    known = {key for charts in SECTIONS.values() for chart in charts for key in chart.keys} | NOT_DRAWN
    keys = {key: None for run in runs for line in run.metrics for key in line if key not in known}
    return [_chart(key, "", key) for key in keys if not key.startswith(("time/", "cpu/"))]


# ---- outcome against process -----------------------------------------------------------------------------------------


DISAGREE = (
    ("right-flagged", "right-sound", "right, wrong step"),
    ("wrong-sound", "wrong-flagged", "wrong, no wrong step"),
)
"""A kind of rollout, the other kind with that outcome, and the first one's name."""


def shares(kinds: Mapping[int, Counter[str]], kind: str, other: str) -> dict[int, float]:
    """The share of a kind in it and the other, by step; without steps that have neither.

    >>> shares({1: Counter(a=1, b=3, c=9), 2: Counter(c=1)}, "a", "b")
    {1: 0.25}
    """
    counts = {step: (found[kind], found[other]) for step, found in kinds.items()}
    return {step: one / (one + two) for step, (one, two) in counts.items() if one + two}


def disagreement(runs: Sequence[Run], maps: Sequence[CreditMap]) -> dict[str, Any] | None:
    """Shares of the judged right and wrong answers on disk; None if no rollout was judged."""
    series = []
    for place, (run, credit_map) in enumerate(zip(runs, maps, strict=True)):
        for number, (kind, other, name) in enumerate(DISAGREE):
            found = shares(credit_map.kinds, kind, other)
            series.append(Series(f"{run.name}: {name}", place, *_style(place, number), [*found], [*found.values()]))
    note = "with a wrong step, share of right answers; without one (dotted), share of wrong answers"
    series = [each for each in series if each.x]
    return as_json("Outcome against process", note, series, percent=True) if series else None
