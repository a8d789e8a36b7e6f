"""Warnings about a critic that finds nothing, or everything."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
from judged_samples import sample
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, scripted_config, shown

from capo_fast.config import load_config
from capo_fast.exchange.figures import figures_of
from capo_fast.records import CreditedSample, Critique
from capo_fast.runlog.critic_watch import CriticWatch
from capo_fast.train import run

ROWS = [gzip.compress(json.dumps({"critiques": [{"failed": False, "text": "I like it\n\x1b[2J" + "x" * 99}]}).encode())]


def warnings(capsys, samples, steps=4, arguments=(), rows=ROWS):
    watch, figures = CriticWatch(load_config(["--algorithm", "capo", *arguments])), list(map(figures_of, samples))
    for step in range(1, steps + 1):
        watch.note(step, figures, rows)
    return capsys.readouterr().err.splitlines()


def judged(outcome, *votes):
    return credited(outcome, votes, Critique(False, frozenset(k for k, vote in enumerate(votes) if vote), 0))


def credited(outcome, votes, *critiques):
    found = replace(sample(outcome, votes), critiques=critiques)
    return CreditedSample(found, True, outcome, found.step_wrong, (0.0,) * 4, (0.0,) * len(votes))


def test_unreadable_critiques_are_named_once_with_the_beginning_of_one(capsys):
    cut = credited(0.0, [0], Critique.absent(truncated=True), Critique.absent())
    [line] = warnings(capsys, [cut, cut])
    assert "step 1: none of 4 critiques could be read (2 cut" in line and "I like it\\n\\x1b[2J" in line
    assert "critic.prompt, critic.verdict (capo) and critic.max_tokens (128)" in line and "x" * 80 not in line
    assert warnings(capsys, [credited(0.0, [0], Critique.absent(failed=True))]) == []
    assert len(warnings(capsys, [cut], rows=[b""])) == 1, "without rows there is no text"


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (
            [judged(0.0, 0, 0), judged(0.0, 0), judged(1.0, 0)],
            "3: the critic found no wrong step, although 6 of the 9",
        ),
        ([judged(0.0, 1, 1), judged(1.0, 1)], "found all 9 steps wrong, in 6 answers, of which 3 are wrong"),
        ([judged(0.0, 1, 1)], "found all 6 steps wrong"),
        ([judged(0.0, 0, 0), judged(1.0, 0)], None),
        ([judged(0.0, 0, 1), judged(0.0, 0)], None),
    ],
)
def test_a_critic_with_one_answer_to_everything(capsys, samples, said):
    found = warnings(capsys, samples)
    assert [said in line for line in found] == ([True] if said else [])


def test_a_judgment_of_whole_wrong_answers_marks_all_their_steps(capsys):
    whole = ["--credit.process", "outcome"]
    assert warnings(capsys, [judged(0.0, 1, 1)], arguments=whole) == []
    assert len(warnings(capsys, [judged(0.0, 1, 1), judged(1.0, 1)], arguments=whole)) == 1


def test_a_run_warns_once(tmp_path, capsys):
    def polite(request):
        return replace(answer(request), text="I like it.") if shown(request)[1] else answer(request)

    config = scripted_config("--algorithm", "capo", "--train.steps", "2", "--run.dir", str(tmp_path / "run"))
    run(config, ScriptedEngine(polite, scorer=score_with(MODEL)))
    [line] = [each for each in capsys.readouterr().err.splitlines() if "warning" in each]
    assert "critiques could be read (0 cut or without room), so credit is by outcome alone; one is 'I like it.'" in line
