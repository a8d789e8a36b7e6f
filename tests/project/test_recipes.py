"""The recipes in kernels/README.md are the trainer's (configs/algorithms), and each runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

import capo_kernels as ck

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([\w. ]+) \| `Credit\((.*?)\)` \| `(.*?)` \| `LossSpec\((.*?)\)` \|", re.MULTILINE)
RECIPES = ROW.findall((ROOT / "kernels" / "README.md").read_text(encoding="utf-8"))


def of_trainer(name):
    """(credit, weights' mode, spec) of an algorithm's file; what it leaves out is the default of both."""
    settings = yaml.safe_load((ROOT / "configs" / "algorithms" / f"{name}.yaml").read_text(encoding="utf-8"))
    loss = settings.get("loss", {})
    mode = loss.pop("aggregation", "sequence-mean")
    return {k: v for k, v in settings["credit"].items() if k != "process"}, mode, ck.LossSpec(**loss)


def test_every_algorithm_has_a_recipe():
    assert [row[0] for row in RECIPES] == ["GRPO", "DAPO", "Dr.GRPO", "GSPO", "CISPO", "CAPO"]


@pytest.mark.parametrize(("name", "credit", "mode", "spec"), RECIPES, ids=[row[0] for row in RECIPES])
def test_a_recipe_is_the_trainers_and_runs(name, credit, mode, spec):
    credit, spec = eval(f"dict({credit})"), eval(f"ck.LossSpec({spec})")
    assert (credit, mode, spec) == of_trainer(name.lower().replace(".", "_"))
    cu_seqlens, trained = torch.tensor([0, 2, 4]).int(), torch.ones(4).bool()
    starts, wrong = torch.zeros(4).bool(), torch.zeros(0)
    votes = ck.Credit(starts, wrong, torch.tensor([1.0, 0.0]), torch.zeros(2).int(), cu_seqlens, **credit)
    weights = ck.token_weights(cu_seqlens, trained, mode, denominator=4)
    result = ck.policy_loss(torch.zeros(4, 5), torch.zeros(4).long(), weights=weights, credit=votes, spec=spec)
    assert result.logprobs.ne(0).all() and result.loss.isfinite()
