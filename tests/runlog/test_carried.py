"""The section `carry` of a checkpoint: open groups are restored bit for bit; inconsistent sections are refused."""

from __future__ import annotations

import json

import pytest

from capo_fast.errors import CapoError
from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.policy.manifest import Manifest, write_json
from capo_fast.policy.shards import shards_of, write_parts
from capo_fast.rollout.carry import OpenGroup, Partial
from capo_fast.runlog.carried import carried_json, carried_tensors, read_carried

LOGPROBS = (-0.1, -1e-17, -3.0000000000000004, -(2**-149), -0.3)
STOPPED = Partial(((2, 3), (4, 2)), 3, False, False, (9, 8, 7, 6, 5), LOGPROBS)
GROUPS = (
    OpenGroup(3, 1, 41, (STOPPED, Partial(((3, 1),), 1, True, True, (2,), (-0.25,)), Partial((), 2))),
    OpenGroup(5, 0, 64, (Partial(((4, 1),), 1, True, False, (3,), (-0.5,)),) * 3),
)


def checkpoint(folder, groups):
    tensors = carried_tensors(groups)
    files = {
        "carry.json": write_json(folder / "carry.json", "carry", carried_json(groups)),
        "carry.safetensors": write_parts(folder / "carry.safetensors", "carry", shards_of(tensors, 0)),
    }
    return Checkpoint(folder, Manifest(5, 1, files))


def test_open_groups_are_restored_bit_for_bit(tmp_path):
    assert read_carried(checkpoint(tmp_path, GROUPS)) == GROUPS
    assert "token_ids" not in json.dumps(json.loads((tmp_path / "carry.json").read_text())[0]["step"])


def test_groups_without_tokens_and_checkpoints_without_the_section(tmp_path):
    unwritten = (OpenGroup(1, 0, 0, (Partial((), 1),)),)
    assert read_carried(checkpoint(tmp_path, unwritten)) == unwritten
    assert read_carried(Checkpoint(tmp_path, Manifest(5, 1, {}))) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda groups: groups[0].update(draw=-1), r"carry\.json: 0\.draw: found -1"),
        (
            lambda groups: groups[0]["rollouts"][0].update(versions=[[2, 9]]),
            r"token_ids: found torch.int64 \[9\], ",
        ),
        (lambda groups: groups[1].update(prompt="x"), r"carry\.json: 1\.prompt: "),
    ],
)
def test_inconsistent_sections_are_a_one_line_error(change, message, tmp_path):
    found = checkpoint(tmp_path, GROUPS)
    groups = json.loads((tmp_path / "carry.json").read_text())
    change(groups)
    (tmp_path / "carry.json").write_text(json.dumps(groups))
    with pytest.raises(CapoError, match=message):
        read_carried(found)
    (tmp_path / "carry.safetensors").unlink()
    with pytest.raises(CapoError, match="carry"):
        read_carried(found)
