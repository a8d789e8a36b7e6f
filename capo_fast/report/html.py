"""Runs and their credit maps -> one HTML file that needs nothing else.

Text of models is data: it is in a JSON block without any `<`, and the page's scripts turn it into text nodes. The
page's content security policy lists the hashes of its scripts, so no other script runs, and the page sends no request.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from typing import Any

from bokeh.util.paths import bokehjs_path
from jinja2 import Environment, PackageLoader, StrictUndefined

from capo_fast import __version__
from capo_fast.report.charts import COLOURS
from capo_fast.report.credit_map import KINDS, RULE, CreditMap, Room
from capo_fast.report.curves import sections as sections_of
from capo_fast.report.runs import Run
from capo_fast.report.stages import OTHER_STAGE, STAGES, stage_names, stage_seconds
from capo_fast.runtime.files import finite

FIRST, LAST = ("page.js", "rollout.js", "credit.js"), ("curves.js",)
"""Scripts before and after Bokeh's, which take most of the loading time: the credit map does not wait for them."""
BOKEH = ("bokeh.min.js", "bokeh-api.min.js")


def render(runs: Sequence[Run], maps: Sequence[CreditMap], room: Room, seed: int) -> str:
    """The page. `room` and `seed` are those of the credit maps."""
    assets = PackageLoader("capo_fast.report", "assets")
    environment = Environment(loader=assets, autoescape=True, undefined=StrictUndefined)
    first, last = ([assets.get_source(environment, name)[0] for name in names] for names in (FIRST, LAST))
    bokeh = [(bokehjs_path() / "js" / name).read_text(encoding="utf-8") for name in BOKEH]
    scripts = [*first, *bokeh, *last]
    sections = sections_of(runs, maps)
    charts = [chart for section in sections for chart in section["charts"]]
    for index, chart in enumerate(charts):
        chart["index"] = index
    shown = [{"run": place} | each for place, found in enumerate(maps) for each in found.shown]
    return environment.get_template("page.html").render(
        version=__version__,
        runs=[_overview(run, place, found) for place, (run, found) in enumerate(zip(runs, maps, strict=True))],
        sections=[section | {"id": section["title"].lower().replace(" ", "-")} for section in sections],
        stages=_stage_table(runs),
        differing=_differing(runs),
        sampling=_sampling(runs, maps, room, seed),
        shown=bool(shown),
        data=embedded(_data(runs, charts, shown)),
        css=assets.get_source(environment, "page.css")[0],
        scripts=scripts,
        hashes=" ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts),
    )


def embedded(data: Any) -> str:
    """JSON for a script element: ASCII, so U+2028 and halves of surrogate pairs are escaped, and no `<`.

    >>> embedded("</script>\u2028")
    '"\\\\u003c/script>\\\\u2028"'
    """
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(runs: Sequence[Run], charts: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "runs": [{"name": run.name, "clock": _clock(run)} for run in runs],
        "charts": [{key: chart[key] for key in ("series", "percent", "top")} for chart in charts],
        "kinds": KINDS,
        "scale": advantage_scale(shown),
        "rollouts": shown,
    }


def _clock(run: Run) -> dict[int, float]:
    """Seconds of all stages except evaluation and checkpoints up to each step, for comparing runs."""
    seconds = [
        sum(finite(value) or 0.0 for key, value in line.items() if key.startswith("time/") and key not in UNTIMED)
        for line in run.metrics
    ]
    steps = [line["step"] for line in run.metrics]
    return {0: 0.0} | {step: round(total, 2) for step, total in zip(steps, accumulate(seconds), strict=True)}


UNTIMED = {"time/eval", "time/checkpoint"}


def advantage_scale(shown: Sequence[dict[str, Any]]) -> float:
    """End of the colour scale: the 98th percentile of the steps' |advantage|, so that outliers do not wash it out."""
    sizes = sorted(abs(a) for each in shown for a in each["advantages"] if a is not None)
    return max(round(sizes[int(0.98 * (len(sizes) - 1))], 1), 0.1) if sizes else 1.0


# ---- tables ----------------------------------------------------------------------------------------------------------


def _overview(run: Run, place: int, found: CreditMap) -> dict[str, Any]:
    settings, final = run.settings, run.final
    wanted = settings.get("train.steps")
    seconds = final.get("wall_seconds") or sum(stage_seconds(run).values())
    return {
        "name": run.name,
        "folder": str(run.folder),
        "colour": COLOURS[place % len(COLOURS)],
        "algorithm": settings.get("algorithm", "sft" if "task" in settings else "?"),
        "policy": settings.get("model.path", "?"),
        "steps": str(run.step) if wanted is None else f"{run.step} of {wanted}",
        "before": _rate(run.summary, "pass@1_before"),
        "after": _rate(final, "pass@1_after"),
        "time": _duration(seconds),
        "state": "finished" if final else "not finished",
        "settings": [(key, _setting(value)) for key, value in settings.items()],
    }


def _rate(summary: dict[str, Any], key: str) -> str:
    rate, error = summary.get(key), summary.get(f"{key}_stderr")
    if rate is None:
        return "–"
    return f"{rate:.3f}" if error is None else f"{rate:.3f} ± {error:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _stage_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Seconds of all steps by stage, and its share of them."""
    seconds = [stage_seconds(run) for run in runs]
    rows = []
    for stage in stage_names(runs):
        cells = [
            {"seconds": f"{found[stage]:,.1f} s", "share": f"{found[stage] / (sum(found.values()) or 1.0):.0%}"}
            if stage in found
            else {"seconds": "–", "share": ""}
            for found in seconds
        ]
        rows.append({"name": stage, "colour": STAGES.get(stage, OTHER_STAGE), "cells": cells})
    return rows


def _differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings in which the runs differ, except their folders."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "run.dir")
    cells = {key: [_setting(run.settings.get(key, "–")) for run in runs] for key in keys}
    return [{"key": key, "cells": values} for key, values in cells.items() if len(set(values)) > 1]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _sampling(runs: Sequence[Run], maps: Sequence[CreditMap], room: Room, seed: int) -> list[str]:
    """Sentences on the number of rollouts shown and the rule of the draw."""
    lines = []
    for run, found in zip(runs, maps, strict=True):
        who = f"{run.name}: " if len(runs) > 1 else ""
        if not found.total:
            lines.append(f"{who}no rollouts on disk (run.keep_rollouts, or no step yet).")
            continue
        steps = f"steps {min(found.kinds)} to {max(found.kinds)}"
        lines.append(f"{who}{len(found.shown):,} of {found.total:,} rollouts on disk ({steps}) are shown.")
        if found.unreadable:
            lines[-1] += f" {found.unreadable:,} lack the texts of their steps (an older version wrote them)."
    if any(len(found.shown) < found.total - found.unreadable for found in maps):
        limit = f"A run has room for {room.rollouts:,} rollouts and {room.bytes / 1e6:.1f} MB here. "
        lines.append(limit + RULE.format(seed=seed))
    return lines
