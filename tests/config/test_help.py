"""The help text and the documentation's tables of settings."""

import pytest

from capo_fast.config import help as usage
from capo_fast.config import load_config
from capo_fast.config.load import read_algorithm
from capo_fast.config.settings import SETTINGS, schema_of
from capo_fast.config.sft import SftConfig


def test_help_shows_every_setting_with_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_config(["--train.steps", "3", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, text.splitlines())) <= usage.WIDTH
    assert all(f"--{key} " in text for key in [*SETTINGS, "config"])
    assert "--rollout.prompts  integer > 0  [12; tiny.yaml: 16]\n      Prompts (groups) per step.\n" in text
    assert "--critic.voting  intersection | majority | union | average | greedy  [intersection]\n" in text
    assert "[0.9,0.999; tiny.yaml: 0.9,0.95]" in text
    assert f"\n  dr_grpo     credit.process={read_algorithm('dr_grpo')['credit.process']} " in text


def test_every_setting_has_a_docstring() -> None:
    assert not [key for key, setting in SETTINGS.items() if not setting.text]


def test_markdown_has_a_row_of_five_cells_for_every_setting() -> None:
    lines = usage.markdown().splitlines()
    rows = [line.replace("\\|", "")[2:-2].split("|") for line in lines if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{key}` " for key in SETTINGS]
    assert {len(row) for row in rows} == {5}
    assert "| `train.steps` | `integer >= 0` | `200` | `16` | Training steps: one batch of rollouts each." in "\n".join(
        lines
    )


def test_the_tables_of_fine_tuning_have_a_row_of_four_cells_for_every_setting() -> None:
    lines = usage.sft_markdown().splitlines()
    rows = [line.replace("\\|", "")[2:-2].split("|") for line in lines if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{key}` " for key in schema_of(SftConfig).settings]
    assert {len(row) for row in rows} == {4}
