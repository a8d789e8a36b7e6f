"""The report of a long run: size of its page, time to make and to open it.

    python -m bench.page [--steps 500] [--rollouts 200] [--opens 7] [--folder runs/page]

Writes a synthetic run with the trainer's own recorder unless the folder has one: words of a small vocabulary, 300
tokens and 4 critiques per rollout, the rollouts of 20 steps repeated. Then it makes the run's page and opens the file
in headless Chromium, each time in a new window. `credit map` is the time until its rollouts are listed, `open` the time
until every chart on the screen is drawn as well. CPU seconds are those of the page's main thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from statistics import median

from playwright.sync_api import Browser, sync_playwright

from capo_fast.records import CreditedSample, Critique, Prompt, Rollout, Sample, StepSpans
from capo_fast.runlog.recorder import RunFolder, packed_rows, rollout_row

STEP_TOKENS, STEPS, VOTES, GROUP, DIFFERENT = 30, 10, 4, 8, 20
WORDS = [
    f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "st", "ld", "ving", "= 3x", "+ y")
]
WATCH = """
window.seen = {};
const drawn = (figure) => figure.querySelector(".bk-Figure") && Bokeh.documents.every((each) => each.is_idle);
const stages = {
  "credit map": () => document.querySelectorAll("#list .item").length > 0,
  "open": () => seen["credit map"] && document.querySelector(".bk-Figure") &&
    [...document.querySelectorAll("figure")].filter((f) => f.getBoundingClientRect().top < innerHeight).every(drawn),
};
const watch = setInterval(() => {
  for (const stage in stages) if (!seen[stage] && stages[stage]()) seen[stage] = performance.now() / 1000;
  if (seen.open) clearInterval(watch);
}, 10);
"""


def rollout(random: Random, group: int, sample: int) -> CreditedSample:
    """A rollout of ten steps, about one of them wrong, with a critique of about 300 characters per vote."""
    texts = tuple(" ".join(random.choices(WORDS, k=STEP_TOKENS)) for _ in range(STEPS))
    wrong = tuple(float(random.random() < 0.1) for _ in texts)
    outcome = float(random.random() < 0.5)
    indices = frozenset(k for k, vote in enumerate(wrong) if vote)
    critiques = tuple(
        Critique(False, indices, 0, " ".join(random.choices(WORDS, k=70)) + f" step_{min(indices, default=0)}")
        for _ in range(VOTES)
    )
    ids = tuple(random.randrange(150_000) for _ in range(STEPS * STEP_TOKENS))
    starts = tuple(k % STEP_TOKENS == 0 for k in range(len(ids)))
    prompt = Prompt(f"p{group}", " ".join(random.choices(WORDS, k=40)), "7", None, ())
    spans = StepSpans(starts, texts)
    made = Rollout(prompt, group, sample, 0, ids, (), "\n\n".join(texts), True, spans)
    advantages = tuple(2 * outcome - vote - 0.9 for vote in wrong)
    return CreditedSample(Sample(made, outcome, critiques, wrong), True, outcome, wrong, (), advantages)


def make_run(folder: Path, steps: int, rollouts: int) -> None:
    random = Random(0)
    recorder = RunFolder(folder)
    figures = ("pass_rate", "reward_mean", "response_tokens_mean", "steps_mean", "wrong_step_rate", "tokens_per_s")
    figures += ("memory_gb", "loss/entropy", "loss/approx_kl", "loss/ref_kl", "loss/clip_low_frac", "grad_norm", "lr")
    figures += ("gap/mean", "gap/p99", "loss/clip_high_frac", "eval/pass@1", "truncated_frac")
    stages = ("sync", "rollout", "critique", "verify", "learn", "checkpoint")
    for step in range(1, steps + 1):
        if step <= DIFFERENT:
            rows = [rollout_row(rollout(random, n // GROUP, n % GROUP)) for n in range(rollouts)]
            recorder.write_rollouts(step, [packed_rows(rows)])
        else:
            source = recorder.rollouts / f"{(step - 1) % DIFFERENT + 1:06d}.jsonl.gz"
            shutil.copy(source, recorder.rollouts / f"{step:06d}.jsonl.gz")
        times = {f"time/{stage}": 10 * random.random() for stage in stages}
        recorder.record(step, {name: random.random() for name in figures} | times | {"critic/critiques": 4 * rollouts})
    (folder / "config.yaml").write_text(f"algorithm: capo\ntrain:\n  steps: {steps}\n")


def make_page(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak GiB of the command."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "capo_fast.report", str(folder), "--out", str(out)], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return time.monotonic() - start, peak


def open_times(page_file: Path, opens: int) -> dict[str, list[float]]:
    """Seconds of the browser's clock from the start of navigation, and CPU seconds until the page is open."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("bench.page needs Chromium to open the page: install it (Debian: apt-get install chromium)")
    seconds: dict[str, list[float]] = defaultdict(list)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for _ in range(opens):
            for stage, time_s in opened(browser, page_file).items():
                seconds[stage].append(time_s)
        browser.close()
    return seconds


def opened(browser: Browser, page_file: Path) -> dict[str, float]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.add_init_script(WATCH)
        thread = context.new_cdp_session(page)
        thread.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(page_file.absolute().as_uri())
        page.wait_for_function("() => window.seen.open")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        metrics = {each["name"]: each["value"] for each in thread.send("Performance.getMetrics")["metrics"]}
        return {"first paint": paint, **page.evaluate("seen"), "CPU": metrics["TaskDuration"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rollouts", type=int, default=200, help="rollouts per step")
    parser.add_argument("--opens", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("runs/page"))
    arguments = parser.parse_args()
    if not (arguments.folder / "config.yaml").exists():
        make_run(arguments.folder, arguments.steps, arguments.rollouts)
    out = arguments.folder / "report.html"
    seconds, peak = make_page(arguments.folder, out)
    opened_s = open_times(out, arguments.opens)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "page_mb": out.stat().st_size / 1e6,
        "make_seconds": seconds,
        "make_peak_gb": peak,
    }
    for stage, each in opened_s.items():
        results[f"{stage}, seconds"] = {
            "median": round(median(each), 2),
            "least": round(min(each), 2),
            "most": round(max(each), 2),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
