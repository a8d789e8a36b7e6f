"""Moving a model into a file: the file's contents, the memory needed, and a full disk."""

from __future__ import annotations

import re
import resource
import signal
from contextlib import ExitStack, contextmanager

import pytest
import torch
from allocated import peak_bytes
from safetensors.torch import load_file
from torch import nn

from capo_fast.policy.passing import pass_model
from capo_fast.policy.slices import copy_slice
from capo_fast.runtime.files import RecordError

LAYERS, SIZE = 8, 128


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(SIZE, SIZE, bias=False)
        self.head.weight = self.layers[0].weight
        self.register_buffer("count", torch.tensor(7))


def test_the_file_has_each_weight_once_and_the_model_is_emptied():
    model = Tied()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with ExitStack() as stack:
        path, names = pass_model(model, torch.bfloat16, stack)
        found = load_file(path)
        count = torch.zeros((), dtype=torch.int64)
        copy_slice(path, "count", (), count)
    assert not path.exists()
    assert len(found) == LAYERS + 1 and names["head.weight"] == names["layers.0.weight"] == "layers.0.weight"
    for name, each in before.items():
        torch.testing.assert_close(found[names[name]], each.bfloat16() if each.is_floating_point() else each)
    assert not any(parameter.numel() for parameter in model.parameters())
    assert count == 7


def test_moving_needs_the_memory_of_one_more_weight():
    model = Tied()
    with ExitStack() as stack:
        peak = peak_bytes(lambda: pass_model(model, torch.bfloat16, stack))
    assert 2 * SIZE**2 <= peak < 4 * SIZE**2


@contextmanager
def full_disk(room: int):
    """Limit files to `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_a_one_line_error_with_the_path_and_the_bytes():
    size = 2 * LAYERS * SIZE**2 + 8
    line = r"^can't write (/\S+/weights\.safetensors): File too large \((.*) bytes wanted, "
    with ExitStack() as stack, full_disk(size // 2), pytest.raises(RecordError, match=line) as error:
        pass_model(Tied(), torch.bfloat16, stack)
    size_wanted = int(re.search(line, str(error.value))[2].replace(",", ""))
    assert size < size_wanted < size + 4096
