"""The README's picture: the credit map of a run, and the learning curves of bench/results/tiny/evidence.json.

capo train --run.dir runs/first
python -m docs.pictures runs/first        # writes docs/images/capo.png
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.image import imread
from playwright.sync_api import sync_playwright

from bench.evidence.arms import Plan
from bench.evidence.plot import draw
from bench.evidence.report import QUARTERS, Figures
from capo_fast.report.__main__ import main as report

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "bench/results/tiny/evidence.json"
PICTURE = ROOT / "docs/images/capo.png"
WINDOW: Any = {"width": 760, "height": 1000}
"""The browser's window, in CSS pixels."""
ONLY_THE_ROLLOUT = """
.top, footer, main > :not(#credit), #credit > :not(#map), #list { display: none !important }
#map { display: block }
"""
ARMS = {"capo-1": "CAPO, one critique per rollout", "prefix": "prefix credit", "grpo": "GRPO"}


def credit_map(run: Path) -> Any:
    """Image of a run's credit map with an open rollout: a right answer with a wrong step."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        if status := report([str(run), "--out", str(page_file)]):
            raise SystemExit(status)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW, device_scale_factor=2)
        page.goto(page_file.as_uri())
        page.add_style_tag(content=ONLY_THE_ROLLOUT)
        page.select_option("#kind", force=True, label="right answer, wrong step")
        page.select_option("#sort", force=True, label="advantage spread")
        page.locator("#list .item").first.dispatch_event("click")
        image = page.locator("#detail").screenshot()
        browser.close()
    return imread(io.BytesIO(image))


def learning_curves(axes: Any) -> None:
    evidence = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    plan = evidence["plan"]
    figures = Figures(Plan(**plan))
    results: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
    for run in evidence["runs"]:
        if run["arm"] in results:
            results[run["arm"]][run["seed"]] = run
    for arm in ARMS:
        draw(axes, arm, results, figures, by_time=False)
    axes.set_title("Held-out pass@1, 8 seeds, 95 % intervals", loc="left", fontsize="medium")
    axes.set(xlabel="rollouts", ylabel="pass@1", xticks=[part * figures.budget for part in QUARTERS])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    lines = dict(zip(ARMS.values(), axes.lines, strict=True))
    axes.legend(lines.values(), lines.keys(), frameon=False, loc="lower right")


def save_picture(run: Path, path: Path = PICTURE) -> None:
    figure = Figure((11, 4.9), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.12, 1))
    left.imshow(credit_map(run), interpolation="lanczos")
    left.set_title("Credit map: advantage of each step, steps voted wrong (mod 10)", loc="left", fontsize="medium")
    left.axis("off")
    learning_curves(right)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=140, metadata={"Software": None}, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run whose credit map is shown")
    save_picture(parser.parse_args().run)
