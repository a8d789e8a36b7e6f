"""What pages copy from other sources: the worked trace, another trainer's settings; and a snippet on a run's files."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from page_runs import all_kinds, make_run
from project.documents import ROOT, blocks

from capo_fast.config.other_names import OTHER_NAMES
from capo_fast.data import DataError
from capo_fast.evaluation.labelled import read_solutions
from docs.trace import GROUP, rewards_and_advantages

MIGRATING = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")


def test_the_trace_has_the_figures_of_the_records_and_of_the_page():
    rewards, advantages = rewards_and_advantages(GROUP)
    assert rewards == [[2, 1, 2], [-1, 0]]
    rounded = [[round(a, 2) for a in solution] for solution in advantages]
    assert rounded == [[1.03, 0.17, 1.03], [-1.54, -0.69]]
    shown = "1.03 1.03 0.17 0.17 1.03 1.03 | -1.54 -1.54 -0.69 -0.69"
    assert shown in (ROOT / "capo_fast/records.py").read_text(encoding="utf-8")
    assert "mean 0.8, std 1.166" in (ROOT / "docs/concepts.md").read_text(encoding="utf-8")


def test_the_hints_of_other_trainers_settings_are_rows_of_the_page():
    rows = MIGRATING.splitlines()
    missing = [name for name, ours in OTHER_NAMES.items() if not any(name in row and f"`{ours}" in row for row in rows)]
    assert not missing


def names_of_trl():
    """Names in the table's left column, without values and data columns."""
    table = MIGRATING.partition("## TRL\n")[2].partition("\n## verl")[0]
    left = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return sorted({name for cell in left for name in re.findall(r"`([a-z_]{4,})(?::[^`]*)?`", cell)})


VALUES = {"dapo", "cispo", "sapo", "luspo", "vespo", "none", "batch", "prompt", "sequence_mask", "dr_grpo"}


@pytest.mark.parametrize("name", [name for name in names_of_trl() if name not in VALUES])
def test_a_name_of_trl_is_one_of_its_settings_or_arguments(name):
    trl, transformers = (Path(find_spec(package).origin).parent for package in ("trl", "transformers"))
    sources = [trl / "trainer/grpo_config.py", trl / "trainer/base_config.py", trl / "trainer/grpo_trainer.py"]
    texts = [path.read_text(encoding="utf-8") for path in (*sources, transformers / "training_args.py")]
    assert any(re.search(rf"^\s+{name}: ", text, re.MULTILINE) for text in texts)


def test_labelled_rollouts_of_a_run_are_data_of_critic_eval(tmp_path):
    """The function of docs/critic.md."""
    names: dict = {}
    exec(next(blocks(ROOT / "docs/critic.md", "python")).text, names)
    file = tmp_path / "labelled.jsonl"
    names["write_unlabelled"](make_run(tmp_path / "run", rows=all_kinds()), file, count=3)
    with pytest.raises(DataError, match="line 1"):
        next(read_solutions(str(file)))
    rows = [json.loads(line) | {"wrong_steps": [0]} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [solution.first_wrong for _, solution in read_solutions(str(file))] == [0, 0, 0]
