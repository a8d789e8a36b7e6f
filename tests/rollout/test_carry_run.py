"""Whole runs with `rollout.carry` on a scripted engine: every prompt once, and the same bits after a kill."""

from __future__ import annotations

import gzip
import json

import pytest
from decoding_engine import DecodingEngine, carrying_engine, continue_answer
from scripted_world import MODEL, score_with, scripted_config

from capo_fast.config.paths import resolve_path
from capo_fast.data import PromptOrder
from capo_fast.engine.base import EngineError
from capo_fast.train import run

WORDS = {
    "--algorithm": "grpo",
    "--rollout.carry": "true",
    "--rollout.enough": "2",
    "--loss.is_mode": "truncate",
    "--eval.path": "none",
    "--checkpoint.every": "1",
    "--train.steps": "6",
}


class Dying(DecodingEngine):
    def step(self):
        if any(name.startswith("rollout-4-") and self.steps - self.entered[name] == 5 for name in self._running):
            raise EngineError("killed")
        return super().step()


def config_of(folder, **more):
    words = WORDS | {"--run.dir": str(folder)} | {f"--{key.replace('__', '.')}": value for key, value in more.items()}
    return scripted_config(*(word for pair in words.items() for word in pair))


def rollouts_of(folder):
    files = sorted((folder / "rollouts").iterdir())
    return [[json.loads(line) for line in gzip.open(path, "rt")] for path in files]


def groups_of(rows):
    return list(dict.fromkeys(row["prompt_id"] for row in rows))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carry") / "run"
    run(config_of(folder), carrying_engine())
    return folder


def test_every_prompt_is_trained_on_once_in_whole_groups_or_carried(whole):
    steps = rollouts_of(whole)
    trained = [prompt for rows in steps for prompt in groups_of(rows)]
    carried = json.loads((whole / "checkpoints/step_000006/carry.json").read_text())
    problems = gzip.decompress(resolve_path("pkg://capo_fast.tiny/train.jsonl.gz").read_bytes()).splitlines()
    drawn = PromptOrder(len(problems), seed=0).take(0, 24)[0]
    ids = [json.loads(problems[index])["id"] for index in drawn]
    assert sorted([*trained, *(ids[group["draw"]] for group in carried)]) == sorted(ids)
    assert all(len(rows) == 4 * len(groups_of(rows)) for rows in steps)
    assert all(2 <= len(groups_of(rows)) <= 6 for rows in steps) and 0 < len(carried) <= 2


def test_rows_and_metrics_name_the_versions(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    found = 0
    for line, rows in zip(lines, rollouts_of(whole), strict=True):
        version, ages = line["step"] - 1, []
        assert line["policy_version"] == version
        for row in rows:
            versions = row.get("versions", [[row["policy_version"], len(row["token_ids"])]])
            assert sum(tokens for _, tokens in versions) == len(row["token_ids"])
            assert [v for v, _ in versions] == sorted({v for v, _ in versions}) and versions[0][0] >= version - 2
            ages += [version - v for v, tokens in versions for _ in range(tokens)]
            found += len(versions) > 1
        assert line["rollout/staleness"] == pytest.approx(sum(ages) / len(ages))
    assert found and any(line["rollout/carried"] for line in lines)


def test_a_run_that_was_killed_ends_with_the_same_bits(whole, tmp_path):
    with pytest.raises(EngineError, match="killed"):
        run(config_of(tmp_path / "run"), Dying(continue_answer, scorer=score_with(MODEL)))
    saved = tmp_path / "run/checkpoints"
    assert (saved / "step_000003/carry.safetensors").exists() and not (saved / "step_000004").exists()
    run(config_of(tmp_path / "run"), carrying_engine())
    names = ["model/model.safetensors", "checkpoints/step_000006/carry.json"]
    for name in names + [f"rollouts/{step:06d}.jsonl.gz" for step in range(1, 7)]:
        assert (whole / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_rounds_of_dynamic_sampling_continue_open_groups(tmp_path):
    run(config_of(tmp_path, train__dynamic_sampling="true", train__steps="2", rollout__n="2"), carrying_engine())
    for rows in rollouts_of(tmp_path):
        assert len(rows) == 2 * len(groups_of(rows))
        assert len({(row["group"], row["sample"]) for row in rows}) == len(rows)
    trained = [prompt for rows in rollouts_of(tmp_path) for prompt in groups_of(rows)]
    assert len(trained) == len(set(trained)) > 8
