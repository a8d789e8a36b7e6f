"""Rates and peaks of a step, by hand, and the trace of a step."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from capo_fast.exchange.columns import Columns
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.profile import profiled
from capo_fast.runlog.speed import Memory, memory_metrics, named_peak, peak_memory, speed_metrics
from capo_fast.runtime.stages import Lap

LAP = Lap({"rollout": 2.0, "learn": 1.0, "sync": 1.0, "eval": 50.0, "checkpoint": 30.0}, {})


def batch(figures, traffic):
    return Batch(figures, frozenset(), {}, Columns.of([]), [], traffic, 0)


def test_rates_are_per_device_and_second_of_training_and_the_critics_tokens_are_separate():
    traffic = Traffic(critique_tokens=30, critique_prompt_tokens=50)
    lengths = [SimpleNamespace(prompt_tokens=30, tokens=tokens) for tokens in (10, 90)]
    figures = speed_metrics(batch(lengths, traffic), LAP, {"learn/flops": 4e12}, peak=8e12, devices=2, learning=2)
    assert figures == {
        "speed/tokens_per_s_per_device": 160 / 8,
        "speed/critic_tokens_per_s_per_device": 80 / 8,
        "speed/tflops_per_device": 2.0,
        "speed/mfu": 0.25,
    }


def test_a_device_without_a_known_peak_has_no_utilisation():
    figures = speed_metrics(batch([], Traffic()), LAP, {"learn/flops": 4e12}, peak=None, devices=1, learning=1)
    assert "speed/mfu" not in figures and figures["speed/tflops_per_device"] == 4


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA L40S", 362.0), ("NVIDIA L4", 121.0)],
)
def test_the_longest_matching_name_gives_the_peak(name, tflops):
    assert named_peak(name, torch.bfloat16) == tflops * 1e12


def test_memory_is_the_largest_of_all_ranks():
    ranks = [Memory(1.0, 30.0), Memory(3.0, 20.0)]
    assert memory_metrics(ranks) == {"memory/host_gb": 3.0, "memory/device_gb": 30.0}
    assert memory_metrics([Memory(1.0, None)]) == {"memory/host_gb": 1.0}


def test_peak_memory_never_falls():
    before = peak_memory().host
    ballast = bytearray(os.urandom(1 << 20)) * 64
    assert 0.01 < before <= peak_memory().host < 1000
    del ballast


def test_a_step_that_fails_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), profiled(tmp_path, 4, print):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
