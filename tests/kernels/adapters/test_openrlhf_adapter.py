"""OpenRLHF is not installed: its argument order and defaults are written here, and torch gives the values."""

from __future__ import annotations

import inspect

import pytest
import torch

from capo_kernels.adapters.openrlhf import log_probs_from_logits


def test_signature() -> None:
    parameters = inspect.signature(log_probs_from_logits).parameters.values()
    assert [(p.name, p.default) for p in parameters][:2] == [("logits", inspect._empty), ("labels", inspect._empty)]
    assert [(p.name, p.default) for p in parameters][2:] == [("temperature", 1.0)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_log_probs_from_logits(shape: tuple[int, ...], temperature: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(*shape, 40, requires_grad=True), torch.randint(40, shape)
    upstream, before = torch.randn(shape), logits.detach().clone()
    exact = logits.detach().double().requires_grad_()

    logp = log_probs_from_logits(logits, labels, temperature)
    (logp * upstream).sum().backward()
    wanted = (exact / temperature).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    (wanted * upstream).sum().backward()

    assert logp.shape == shape and logp.dtype == torch.float32
    assert (logp - wanted).abs().max() < 1e-6
    assert (logits.grad - exact.grad).abs().max() < 1e-6
    assert torch.equal(logits, before)


def test_bfloat16_logits_keep_float32_log_probs() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 400).bfloat16(), torch.randint(400, (50,))
    wanted = logits.double().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    assert (log_probs_from_logits(logits, labels) - wanted).abs().max() < 1e-5


def test_the_result_has_the_shape_of_the_logits_for_any_shape_of_the_labels() -> None:
    assert log_probs_from_logits(torch.randn(5, 7), torch.randint(7, (1, 5))).shape == (5,)
    with pytest.raises(ValueError, match=r"^labels: got shape \[4\], want \[5\] beside logits \[5, 7\]"):
        log_probs_from_logits(torch.randn(5, 7), torch.zeros(4).long())
