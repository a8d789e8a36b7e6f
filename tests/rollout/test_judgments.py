"""The paper's third arm on the scripted engine: critiques are judgments of the whole solution."""

from __future__ import annotations

import gzip
import json
import math

from scripted_world import scripted_config, scripted_engine

from capo_fast.train import run


def test_a_step_of_grpo_genorm_is_rewarded_by_verdict_and_judgment(tmp_path):
    config = scripted_config("--algorithm", "grpo_genorm", "--train.steps", "1", "--run.dir", str(tmp_path / "run"))
    run(config, scripted_engine())
    with gzip.open(tmp_path / "run" / "rollouts" / "000001.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    assert {row["outcome"] for row in rows} == {0.0, 1.0}
    judged = {tuple(len(each["wrong_steps"]) > 0 for each in row["critiques"]) for row in rows}
    assert len(judged) == 2, "some solutions are judged right, some wrong"
    for row in rows:
        assert all(len(each["wrong_steps"]) in (0, len(row["steps"])) for each in row["critiques"])
        share = sum(not each["wrong_steps"] for each in row["critiques"]) / len(row["critiques"])
        assert math.isclose(row["reward"], 1 / (1 + math.exp(-share)) + 2 * row["outcome"] - 1)
        assert len(set(row["advantages"])) <= 1, "no step is penalised"
