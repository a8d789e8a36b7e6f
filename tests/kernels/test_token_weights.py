"""The weight of each token in the loss."""

from __future__ import annotations

import pytest
import torch

import capo_kernels as ck

CU = torch.tensor([0, 3, 3, 5, 7], dtype=torch.int32)
MASK = torch.tensor([1, 0, 1, 0, 0, 1, 1]).bool()
"""Trained tokens: 2 of 3, an empty sequence, 0 of 2, 2 of 2."""


@pytest.mark.parametrize(
    ("mode", "denominator", "want"),
    [
        ("sequence-mean", None, 1 / 4),
        ("sequence-mean", 5, 1 / 10),
        ("token-mean", None, 1 / 4),
        ("token-mean", 10, 1 / 10),
        ("constant", 8.0, 1 / 8),
        ("constant", torch.tensor(8), 1 / 8),
        ("sequence-mean", torch.tensor(5.0), 1 / 10),
    ],
)
def test_by_hand(mode: str, denominator, want: float) -> None:
    weights = ck.token_weights(CU, MASK, mode, denominator)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([want, 0, want, 0, 0, want, want])


def test_sequences_have_equal_weight_whatever_their_length() -> None:
    cu = torch.tensor([0, 1, 5], dtype=torch.int32)
    weights = ck.token_weights(cu, torch.ones(5).bool(), "sequence-mean")
    assert weights.tolist() == [0.5, 0.125, 0.125, 0.125, 0.125]


@pytest.mark.parametrize("mode", ["sequence-mean", "token-mean"])
def test_without_trained_tokens_all_weights_are_0(mode: str) -> None:
    assert ck.token_weights(CU, torch.zeros(7).bool(), mode).tolist() == [0.0] * 7
    assert ck.token_weights(CU[:1], torch.zeros(0).bool(), mode).shape == (0,)


@pytest.mark.parametrize("mode", ["sequence-mean", "token-mean"])
def test_parts_with_the_whole_denominator_add_up_to_the_whole(mode: str) -> None:
    whole = ck.token_weights(CU, MASK, mode)
    denominator = {"sequence-mean": 2, "token-mean": 4}[mode]
    first = ck.token_weights(CU[:3], MASK[:3], mode, denominator)
    second = ck.token_weights(CU[2:] - 3, MASK[3:], mode, denominator)
    assert torch.equal(torch.cat([first, second]), whole)


def test_gradients_that_ddp_averages() -> None:
    """Two ranks of two micro-batches: the loss times the ranks, averaged, is the whole batch's gradient."""
    world, hidden, targets = 2, torch.randn(7, 4), torch.randint(5, (7,))
    parts = [(cu, int(cu[0]), int(cu[-1])) for cu in CU.unfold(0, 2, 1)]

    def gradient(parts: list, factor: float) -> torch.Tensor:
        head = torch.ones(5, 4, requires_grad=True)
        for cu, first, last in parts:
            weights = ck.token_weights(cu - first, MASK[first:last], "sequence-mean", denominator=2)
            given = {"weights": weights, "advantages": torch.ones(last - first)}
            loss = ck.linear_policy_loss(hidden[first:last], head, targets[first:last], **given).loss
            (loss * factor).backward()
        return head.grad

    ranks = torch.stack([gradient(parts[:2], world), gradient(parts[2:], world)])
    torch.testing.assert_close(ranks.mean(0), gradient([(CU, 0, 7)], 1))
