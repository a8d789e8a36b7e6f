"""The settings that define each named algorithm, repeated here."""

from __future__ import annotations

import pytest

from capo_fast.config import load_config

CHOICES = {
    "credit": ("process", "outcome_weight", "process_weight", "norm"),
    "loss": ("objective", "ratio", "clip_low", "clip_high", "aggregation", "kl_coef"),
    "train": ("dynamic_sampling", "truncated"),
}
OUTCOME = ("none", 1.0, 0.0)
PLAIN = ("ppo", "token", 0.2, 0.28, "token-mean", 0.0, False, "keep")
SETTINGS = {
    "capo": ("steps", 2.0, 1.0, "group-token", *PLAIN),
    "capo-gated": ("steps", 2.0, 1.0, "group-token", *PLAIN),
    "grpo": (*OUTCOME, "group-sequence", *PLAIN),
    "grpo_genorm": ("outcome", 1.0, 0.0, "group-sequence", *PLAIN),
    "dr_grpo": (*OUTCOME, "sequence-center", "ppo", "token", 0.2, 0.28, "constant", 0.0, False, "keep"),
    "dapo": (*OUTCOME, "group-sequence", "ppo", "token", 0.2, 0.28, "token-mean", 0.0, True, "penalise"),
    "gspo": (*OUTCOME, "group-sequence", "ppo", "sequence", 3e-4, 4e-4, "sequence-mean", 0.0, False, "keep"),
    "cispo": (*OUTCOME, "group-sequence", "cispo", "token", 0.2, 0.28, "token-mean", 0.0, False, "keep"),
    "prefix": ("prefix", 1.0, 0.5, "sequence-center", *PLAIN),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_algorithm_sets_its_defining_settings(name: str) -> None:
    config = load_config(["--algorithm", name])
    found = [getattr(getattr(config, section), key) for section, keys in CHOICES.items() for key in keys]
    assert tuple(found) == SETTINGS[name]
