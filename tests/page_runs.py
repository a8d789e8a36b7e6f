"""Small run folders for the report's tests: every kind of rollout, and texts that attack the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from capo_fast.records import CreditedSample, Critique, Prompt, Rollout, Sample, StepSpans
from capo_fast.runlog.recorder import RunFolder, packed_rows, rollout_row
from capo_fast.runtime.files import json_line

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned=1'>"
HOSTILE += "\u2028<!-- {{ 7*7 }} ${x} \ud800 \0 é𝕏 \u202e\x1b[2J" + "x" * 2000 + "\U0001f468\u200d" * 500
SETTINGS = "algorithm: {algorithm}\nrun:\n  dir: {folder}\nmodel:\n  path: some/model\ntrain:\n  steps: 4\n"


def critique(*wrong: int, abstained: bool = False, text: str = "") -> Critique:
    return Critique(abstained, frozenset(wrong), 0, text or f"Judgment: {'No' if wrong else 'Yes'} {sorted(wrong)}")


def row(
    sample: int,
    outcome: float | None,
    votes: Sequence[float],
    advantages: Sequence[float],
    critiques: Sequence[Critique],
    text: str = "",
    group: int = 0,
) -> dict:
    """A line of a rollouts file as the trainer writes it, with two tokens per step."""
    steps = tuple(f"step {k} of {sample} {text}" for k in range(len(votes)))
    prompt = Prompt(f"p{group}", f"problem {group} {text}", f"answer {text}", None, (1,))
    starts = (True, False) * len(votes)
    ids = tuple(range(len(starts)))
    rollout = Rollout(
        prompt, group, sample, 0, ids, (0.0,) * len(ids), "\n\n".join(steps), True, StepSpans(starts, steps)
    )
    judged = Sample(rollout, outcome, tuple(critiques), tuple(votes))
    return rollout_row(CreditedSample(judged, outcome is not None, outcome or 0.0, tuple(votes), (), tuple(advantages)))


def all_kinds(text: str = "") -> list[dict]:
    """One rollout of each kind, samples 0 to 6. Sample 2 has the right answer with a wrong step."""
    hostile = critique(1, text=f"step_1 is wrong {text}")
    return [
        row(0, 1.0, (0, 0), (1.0, 1.0), [critique()], text),
        row(1, 0.0, (0, 0, 0), (-0.5, -0.5, -0.5), [critique()], text),
        row(2, 1.0, (0, 1, 0), (1.5, -0.3, 1.5), [hostile, critique(1, 2)], text),
        row(3, 0.0, (1, 0), (-2.0, -0.7), [critique(0)], text, group=1),
        row(4, 1.0, (0,), (0.8,), [critique(abstained=True)], text, group=1),
        row(5, 0.0, (0,), (-0.9,), [], text, group=1),
        row(6, None, (0, 0), (math.nan, 0.0), [critique()], text, group=1),
    ]


def make_run(
    folder: Path, steps: int = 4, algorithm: str = "capo", rows: Sequence[dict] = (), finished: bool = True
) -> Path:
    """A run with these rollouts in every step, written by the trainer's recorder."""
    recorder = RunFolder(folder)
    for step in range(1, steps + 1):
        critiques = {"critic/critiques": 8, "critic/abstained": 1, "wrong_step_rate": 0.4 / step}
        critiques = critiques if algorithm == "capo" else {"critic/critiques": 0, "wrong_step_rate": 0.0}
        times = {"time/rollout": 1.0, "time/learn": 0.5 * step, **{f"extra/{n}": n + step for n in range(12)}}
        recorder.record(step, {"pass_rate": 0.2 * step, "loss/ref_kl": math.nan, "lr": 1e-5, **critiques, **times})
        recorder.write_rollouts(step, [packed_rows(rows)])
    (folder / "config.yaml").write_text(SETTINGS.format(algorithm=algorithm, folder=json.dumps(str(folder))))
    if finished:
        summary = {
            "steps": steps,
            "pass@1_before": 0.25,
            "pass@1_before_stderr": 0.125,
            "pass@1_after": 0.75,
            "wall_seconds": 61.0,
        }
        (folder / "summary.json").write_bytes(json_line(summary))
    return folder
