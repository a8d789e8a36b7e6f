"""Metrics -> the page's small multiples, as plotly figures: one chart a quantity, one colour a run."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from capo_fast.files import finite
from capo_fast.page.credit_map import CreditMap
from capo_fast.page.runs import Run

COLOURS = ("#3b82c4", "#dd7a2f", "#2c9c75", "#bf62a6", "#a88f14", "#7a70d6", "#2f9fbf", "#87878f")
"""By the run's place on the command line: adding a run at the end changes no other's."""
DASHES = ("solid", "dot", "dash")
"""By the line's place in its chart; and a run past the eighth has its colour again, dashed."""
STAGES = {
    "rollout": "#3b82c4",
    "critique": "#dd7a2f",
    "learn": "#2c9c75",
    "eval": "#bf62a6",
    "sync": "#a88f14",
    "verify": "#7a70d6",
    "checkpoint": "#2f9fbf",
}
OTHER_STAGE = "#87878f"
BARS = 100
"""At most so many bars in a chart of stage times."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One small multiple. Each of `lines` is a name and what it draws of a line of metrics."""

    title: str
    note: str
    lines: tuple[tuple[str, Callable[[Line], float | None]], ...]
    keys: tuple[str, ...]
    """The metrics that it uses up."""
    error: str | None = None
    """The metric that holds the standard error."""
    text: str = ".4~g"
    """d3's format of a value."""


def _get(key: str) -> Callable[[Line], float | None]:
    return lambda line: finite(line.get(key))


def _chart(title: str, note: str, *keys: str, error: str | None = None, text: str = ".4~g") -> Chart:
    lines = tuple((key.split("/")[-1].replace("_", " "), _get(key)) for key in keys)
    return Chart(title, note, lines, (*keys, error) if error else keys, error, text)


def _ratio(title: str, note: str, key: str, whole: str) -> Chart:
    """`key` as a share of `whole`; nothing where there is no whole."""

    def share(line: Line) -> float | None:
        part, all_ = finite(line.get(key)), finite(line.get(whole))
        return part / all_ if part is not None and all_ else None

    return Chart(title, note, ((title, share),), (key, whole), text=".2~%")


def _wrong_steps(line: Line) -> float | None:
    """Without critiques no step was judged: a rate of 0 would say that they were sound."""
    return finite(line.get("wrong_step_rate")) if line.get("critic/critiques") else None


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Learning": (
        _chart("pass@1, held out", "± standard error", "eval/pass@1", error="eval/stderr", text=".3f"),
        _chart("Pass rate of rollouts", "share of right answers", "pass_rate", text=".3f"),
        _chart("Reward", "mean, with format bonus and length penalty", "reward_mean"),
        _chart("Response length", "tokens, mean", "response_tokens_mean"),
        _chart("Cut by the length limit", "share of rollouts", "truncated_frac", text=".2~%"),
        _chart("Steps", "a rollout, mean", "steps_mean"),
    ),
    "Speed": (
        _chart("Throughput", "response tokens a second, evaluation left out", "tokens_per_s"),
        _chart("Memory", "GiB, peak so far", "memory_gb"),
    ),
    "Critic": (
        Chart("Steps voted wrong", "share of steps", (("wrong", _wrong_steps),), ("wrong_step_rate",), text=".2~%"),
        _ratio("Abstained", "share of critiques", "critic/abstained", "critic/critiques"),
        _ratio("Truncated", "share of critiques", "critic/truncated", "critic/critiques"),
        _ratio("Out-of-range indices", "a critique", "critic/out_of_range", "critic/critiques"),
        _chart("Verifier time-outs", "rollouts, and in evaluation (dotted)", "verify/timeouts", "eval/timeouts"),
    ),
    "Policy": (
        _chart("Entropy", "nats a token", "loss/entropy"),
        _chart("KL to the sampling policy", "nats a token", "loss/approx_kl"),
        _chart("KL to the reference", "nats a token", "loss/ref_kl"),
        _chart("Clipped", "share of tokens, below and above (dotted)", "loss/clip_low_frac", "loss/clip_high_frac"),
        _chart("Trainer-engine gap", "of log-probs, mean and 99th percentile (dotted)", "gap/mean", "gap/p99"),
        _chart("Gradient norm", "before clipping", "grad_norm"),
        _chart("Learning rate", "", "lr"),
        _chart("Groups dropped", "all advantages 0", "groups/dropped"),
        _chart("Updates skipped", "not finite", "updates_skipped"),
    ),
}
UNDRAWN = {"step", "rollouts", "policy_version", "updates", "critic/parsed", "critic/critiques"}
"""Counts that only mirror the settings, or are the rest of what is drawn."""


def sections(runs: Sequence[Run], maps: Sequence[CreditMap]) -> list[dict[str, Any]]:
    """The sections of the page: charts, and what is not drawn: not measured, or the same throughout."""
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
        figure = _figure(chart, runs)
        values = [y for trace in figure.data for y in trace.y if y is not None]
        if not values:
            unmeasured.append(chart.title)
        elif set(values) == {0} or (len(set(values)) == 1 and len(values) > len(figure.data)):
            constant.append(f"{chart.title} {as_text(values[0], chart.text)}")
        else:
            drawn.append(as_json(chart.title, chart.note, chart.text, figure))
    return {"title": title, "charts": drawn, "unmeasured": unmeasured, "constant": constant}


def _figure(chart: Chart, runs: Sequence[Run]) -> go.Figure:
    figure = go.Figure(layout={"yaxis": {"tickformat": ".2~%" if chart.text.endswith("%") else None}})
    for place, run in enumerate(runs):
        for number, (name, value) in enumerate(chart.lines):
            lines = run.metrics
            if chart.error:  # evaluations are some steps apart
                lines = [line for line in evaluated(run) if value(line) is not None]
            points = [(line["step"], value(line), finite(line.get(chart.error or ""))) for line in lines]
            trace = _trace(run.name if len(chart.lines) == 1 else f"{run.name}, {name}", place, number, points, chart)
            figure.add_trace(trace)
    return figure


def _trace(name: str, place: int, number: int, points: Sequence[tuple[Any, ...]], chart: Chart) -> go.Scatter:
    x, y, errors = ([point[k] for point in points] for k in range(3))
    dash = DASHES[(number + place // len(COLOURS)) % len(DASHES)]
    return go.Scatter(
        x=x,
        y=y,
        name=html.escape(name),  # plotly reads names as a little HTML
        meta={"run": place},
        mode="lines+markers" if len(points) <= 40 else "lines",
        line={"color": COLOURS[place % len(COLOURS)], "dash": dash, "width": 1.75},
        marker={"size": 4},
        error_y={"array": errors, "thickness": 1, "width": 2} if any(error is not None for error in errors) else None,
        hovertemplate=f"%{{y:{chart.text}}}",
    )


def evaluated(run: Run) -> list[Line]:
    """The metrics, and before them the evaluation at step 0, which only the summary has."""
    if run.summary.get("pass@1_before") is None:
        return run.metrics
    before = {"eval/pass@1": run.summary["pass@1_before"], "eval/stderr": run.summary.get("pass@1_before_stderr")}
    return [{"step": 0} | before, *run.metrics]


def as_json(title: str, note: str, text: str, figure: go.Figure) -> dict[str, Any]:
    """A chart for the page; the template is the page's own, there once for light and once for dark."""
    spec = figure.to_plotly_json()
    spec["layout"].pop("template", None)
    last = [] if figure.data[0].type == "bar" else [_last(trace, text) for trace in figure.data]
    return {"title": title, "note": note, "last": last, "data": spec["data"], "layout": spec["layout"]}


def _last(trace: go.Scatter, text: str) -> dict[str, str]:
    """The last value of a line, for those who see no chart."""
    value = next((y for y in reversed(trace.y) if y is not None), None)
    return {"name": html.unescape(trace.name), "colour": trace.line.color, "value": as_text(value, text)}


def as_text(value: float | None, text: str) -> str:
    """As d3 writes it under the format `text`, near enough."""
    if value is None:
        return "–"
    if text.endswith("%"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _rest(runs: Sequence[Run]) -> list[Chart]:
    """A chart for every metric that no other chart shows."""
    known = {key for charts in SECTIONS.values() for chart in charts for key in chart.keys} | UNDRAWN
    keys = {key: None for run in runs for line in run.metrics for key in line if key not in known}
    return [_chart(key, "", key) for key in keys if not key.startswith("time/")]


# ---- stage times -----------------------------------------------------------------------------------------------------


def stage_charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Stacked seconds of each step, one chart a run, all on one scale."""
    stacks = [_stack(run) for run in runs]
    highest = max((sum(times) for stack in stacks for times in zip(*stack[1].values(), strict=True)), default=0.0)
    return [
        as_json(f"Stage times, {run.name}", _stack_note(size), ".3~s", _stack_figure(x, stack, place, highest))
        for place, (run, (x, stack, size)) in enumerate(zip(runs, stacks, strict=True))
        if stack
    ]


def stage_names(runs: Sequence[Run]) -> list[str]:
    """All stages of the runs, the known ones first and in their order."""
    found = {
        key.removeprefix("time/") for run in runs for line in run.metrics for key in line if key.startswith("time/")
    }
    return [name for name in STAGES if name in found] + sorted(found - STAGES.keys())


def _stack(run: Run) -> tuple[list[float], dict[str, list[float]], int]:
    """The middle step of each bar, mean seconds by stage, and how many steps a bar stands for."""
    size = max(math.ceil(len(run.metrics) / BARS), 1)
    bars = [run.metrics[at : at + size] for at in range(0, len(run.metrics), size)]
    x = [(bar[0]["step"] + bar[-1]["step"]) / 2 for bar in bars]
    stages = stage_names([run])
    return (
        x,
        {s: [math.fsum(finite(n.get(f"time/{s}")) or 0.0 for n in bar) / len(bar) for bar in bars] for s in stages},
        size,
    )


def _stack_note(size: int) -> str:
    return "seconds a step" if size == 1 else f"seconds a step, a bar is the mean of {size} steps"


def _stack_figure(x: Sequence[float], stack: dict[str, list[float]], place: int, highest: float) -> go.Figure:
    figure = go.Figure(layout={"barmode": "stack", "bargap": 0.08, "yaxis": {"range": [0, highest * 1.05]}})
    for stage, seconds in stack.items():
        colour = STAGES.get(stage, OTHER_STAGE)
        figure.add_trace(
            go.Bar(
                x=x,
                y=seconds,
                name=html.escape(stage),
                meta={"run": place, "bars": True},
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate="%{y:.3~s} s",
            )
        )
    return figure


# ---- outcome against process -----------------------------------------------------------------------------------------


def disagreement(runs: Sequence[Run], maps: Sequence[CreditMap]) -> dict[str, Any] | None:
    """Shares of the judged rollouts on disk; None where nothing was judged."""
    chart = Chart("Outcome against process", "", (), (), text=".2~%")
    figure = go.Figure(layout={"yaxis": {"tickformat": ".2~%"}})
    for place, (run, credit_map) in enumerate(zip(runs, maps, strict=True)):
        judged = {step: sum(n for kind, n in kinds.items() if "-" in kind) for step, kinds in credit_map.kinds.items()}
        for number, (kind, name) in enumerate(
            (("right-flagged", "right, wrong step"), ("wrong-sound", "wrong, no wrong step"))
        ):
            points = [(step, credit_map.kinds[step][kind] / n, None) for step, n in judged.items() if n]
            if points:
                figure.add_trace(_trace(f"{run.name}: {name}", place, number, points, chart))
    note = "right answer with a wrong step; wrong answer without one (dotted): share of judged rollouts"
    return as_json(chart.title, note, chart.text, figure) if figure.data else None


# ---- the page's two looks --------------------------------------------------------------------------------------------


def template(ink: str, faint: str, grid: str, surface: str) -> dict[str, Any]:
    """The look of all charts under one theme."""
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        "exponentformat": "e",
        "tickfont": {"color": faint, "size": 11},
    }
    layout = go.Layout(
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": ink},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 46, "r": 8, "t": 6, "b": 26},
        xaxis=axis | {"showgrid": False, "nticks": 6},
        yaxis=axis | {"nticks": 5},
        showlegend=False,
        hovermode="x unified",
        hoverlabel={"bgcolor": surface, "bordercolor": grid, "font": {"color": ink, "size": 12}, "namelength": 40},
    )
    return {"layout": layout.to_plotly_json()}


TEMPLATES = {
    "light": template("#1c2330", "#5b6675", "#e3e6eb", "#ffffff"),
    "dark": template("#e4e8ee", "#98a3b3", "#2c333d", "#1b2028"),
}
