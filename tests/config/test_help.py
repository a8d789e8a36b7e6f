"""The help text."""

import pytest

from capo_fast.config import help as usage
from capo_fast.config.load import TYPES, load_config
from capo_fast.config.presets import ALGORITHMS


def test_help_shows_every_setting_with_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_config(["--train.steps", "3", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, text.splitlines())) <= usage.WIDTH
    assert all(f"--{key} " in text for key in [*TYPES, "config"])
    assert "--rollout.prompts  integer  [12; tiny.yaml: 16]\n      Prompts a step (groups).\n" in text
    assert "--critic.voting  intersection | majority | union | average | greedy  [intersection]\n" in text
    assert "[0.9,0.999; tiny.yaml: 0.9,0.95]" in text
    assert all(f"\n  {name} " in text for name in ALGORITHMS)


def test_every_setting_has_a_docstring() -> None:
    assert usage.docstrings().keys() == TYPES.keys()
    assert all(usage.docstrings().values())
