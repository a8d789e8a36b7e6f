"""The examples: their files at their smallest sizes, and the commands of their READMEs.

`python -m bench.examples` runs the READMEs' commands with the real engine.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from scripted_world import scripted_engine, small_arguments

from bench.examples import SIZES, code_of, names, readme_commands
from capo_fast.cli import COMMANDS
from capo_fast.config import load_config
from capo_fast.data import read_rows
from capo_fast.runlog.recorder import rollout_files
from capo_fast.train import run
from capo_fast.verify import answers_equal, extract_answer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def load(path: str):
    """A Python file of the examples, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(name: str) -> list[str]:
    """The settings of the README's `capo train`."""
    [line] = [line for line in readme_commands(name) if line.startswith("capo train ")]
    return shlex.split(line)[2:]


def train(name: str, folder: Path, monkeypatch) -> dict:
    """Metrics of the README's run, shortened to one step on the scripted engine."""
    monkeypatch.chdir(EXAMPLES / name)
    monkeypatch.syspath_prepend(EXAMPLES / name)
    words = [*settings_of(name), "--train.steps", "1", "--run.dir", str(folder)]
    run(load_config(small_arguments(*words)), scripted_engine())
    return json.loads((folder / "metrics.jsonl").read_text())


def test_the_table_has_every_example():
    listed = re.findall(r"\]\((\w+)/README\.md\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == names() and len(listed) == 7


@pytest.mark.parametrize("name", names())
def test_the_commands_of_a_readme(name, monkeypatch):
    """Each command is a known one, and its settings load in the example's folder."""
    monkeypatch.chdir(EXAMPLES / name)
    for line in readme_commands(name):
        words = shlex.split(line)
        assert any(line.startswith(begin) for begin in SIZES) or (words[0] == "capo" and words[1] in COMMANDS), line
        if words[:2] == ["capo", "train"]:
            load_config(words[2:])


def test_the_own_reward_example(tmp_path, monkeypatch):
    rewards = load("own_reward/rewards.py")
    assert rewards.right("1+2=3\n\nA:3", "3") and not rewards.right("1+2=3\n\nA:4", "3")
    assert rewards.complete("1+2=3\n\nA:3", "5", problem="1+2*5", truncated=False) == 0.5
    metrics = train("own_reward", tmp_path / "run", monkeypatch)
    assert metrics["reward/right"] == metrics["pass_rate"] < metrics["reward/complete"] <= 1
    assert metrics["reward_mean"] == pytest.approx(metrics["reward/right"] + 0.2 * metrics["reward/complete"])


def test_the_own_credit_example_and_the_credit_map_of_its_run(tmp_path, monkeypatch, capsys):
    """The estimator equals the one in docs/credit.md, which tests/credit tests."""
    assert (EXAMPLES / "own_credit/my_credit.py").read_text() in (ROOT / "docs/credit.md").read_text()
    train("own_credit", tmp_path / "runs/first", monkeypatch)
    rows = [row for _, row in read_rows(str(rollout_files(tmp_path / "runs/first")[1]))]
    assert any(len(set(row["advantages"])) > 2 for row in rows), "the steps of a rollout differ"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    capsys.readouterr()
    drawn: dict = {}
    exec(code_of(EXAMPLES / "credit_map/credit_map.ipynb"), drawn)
    steps = [step.strip() for row in drawn["group"] for step in row["steps"]]
    cells = [text.get_text() for text in drawn["plt"].gcf().axes[0].texts]
    drawn["plt"].close("all")
    assert [text for text in cells if text not in ("right", "wrong")] == steps
    assert capsys.readouterr().out.startswith("step 1: 16 rollouts of 4 problems, ")


def test_the_notebook_has_its_output_and_is_small():
    path = EXAMPLES / "credit_map/credit_map.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] == place for place, cell in enumerate(cells, start=1))
    assert "image/png" in cells[-1]["outputs"][-1]["data"] and path.stat().st_size < 150_000


def test_the_references_of_the_chat_example_are_read_like_gsm8ks():
    rows = [json.loads(line) for line in (EXAMPLES / "chat_jsonl/problems.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        result = row["answer"].rpartition("#### ")[2]
        assert answers_equal(f"so it is {result}", row["answer"]) and not answers_equal("1234", row["answer"])
        worked = row["answer"].rpartition("\n####")[0]
        assert extract_answer(worked) == result, "the worked solution ends with another number"


def test_the_pytorch_loop_learns():
    right = load("pytorch_loop/loop.py").train(150, process_weight=1.0, every=150)
    assert right[0] < 0.2 and right[150] > 0.8


def test_the_trl_example(tmp_path):
    """Step credit of a right solution and of one with a wrong second step, then one update."""
    example = load("trl/train.py")
    trainer = example.make_trainer(1, str(tmp_path))
    tokenizer = trainer.processing_class
    texts = ["1+2=3\n\n3*3=9\n\nA:9", "1+2=3\n\n3*3=8\n\nA:8"]
    packed = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt")
    batch = {"completion_ids": packed["input_ids"], "completion_mask": packed["attention_mask"]}
    inputs = [{"prompt": "1+2*3\n", "answer": "9"}] * 2
    right, wrong = example.step_advantages(batch, inputs, tokenizer)
    assert right.unique().numel() == 1 and right[0] > 0 > wrong[0]
    assert wrong[7] < wrong[0] == wrong[-1], "the tokens of the wrong step have the lowest advantage"
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.lm_head.weight, before)
