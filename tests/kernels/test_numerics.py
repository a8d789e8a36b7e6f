"""Numerical pitfalls known from other projects, one test each, for every implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from criterion import check, check_logprobs, check_loss, loss_results
from implementations import DEVICE, INTERPRETED, thinned
from problems import TOKENS, Problem, linear_problem, logits_problem

import capo_kernels as ck

NARROW = [torch.bfloat16, torch.float16]
WIDE = 5_003 if INTERPRETED else 40_009
"""A vocabulary large enough that every implementation splits a row; a prime."""


def rows(tokens: int, vocab: int, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return (torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed)) * spread).to(DEVICE)


def target_ids(tokens: int, vocab: int) -> torch.Tensor:
    return (torch.arange(tokens, device=DEVICE) * 7 + 3) % vocab


def with_others(problem: Problem, **changes) -> Problem:
    return replace(problem, others={**problem.others, **changes})


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_no_ratio_noise_from_narrow_log_probs(dtype: torch.dtype, impl: str) -> None:
    """With bfloat16 log-probs, which are 1 % off, the ratio of a policy to itself would be 1 % off."""
    logits, targets, ones = rows(TOKENS, 37).to(dtype), target_ids(TOKENS, 37), torch.ones(TOKENS, device=DEVICE)
    old = ck.token_logprobs(logits.double(), targets, impl="reference").float()
    metrics = ck.policy_loss(logits, targets, weights=ones, advantages=ones, old_logprobs=old, impl=impl).metrics
    assert 1 - 3e-6 < metrics["ratio_min"] <= metrics["ratio_max"] < 1 + 3e-6


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_logits_are_widened_before_the_temperature(dtype: torch.dtype, impl: str) -> None:
    logits, targets = rows(TOKENS, 33, spread=4).to(dtype), target_ids(TOKENS, 33)
    got, entropy = ck.token_logprobs(logits, targets, temperature=0.7, entropy=True, impl=impl)
    want, want_entropy = ck.token_logprobs(logits.double(), targets, temperature=0.7, entropy=True)
    assert got.dtype == entropy.dtype == torch.float32
    assert (got - want).abs().max() < 5e-6
    assert (entropy - want_entropy).abs().max() < 5e-6


@pytest.mark.parametrize("shift", thinned([-3e4, -100.0, 0.0, 100.0, 3e4], step=2))
def test_log_probs_are_at_most_0_and_finite_at_any_level(shift: float, impl: str) -> None:
    """In rows without a positive logit, a padding of 0 would become the maximum."""
    logits = rows(TOKENS, 5, spread=30, seed=2) + shift
    logp, entropy = ck.token_logprobs(logits, logits.argmax(-1), entropy=True, impl=impl)
    assert (logp <= 0).all()
    assert logp.isfinite().all()
    assert (entropy >= 0).all()
    assert (entropy <= math.log(5) + 1e-5).all()


@pytest.mark.parametrize("shift", [-4096.0, 4096.0])
def test_entropy_does_not_lose_its_digits_to_the_level_of_the_logits(shift: float, fused: str) -> None:
    """logsumexp(z) - sum p z with z near 4,096 would keep three digits. Logits are multiples of 1/64: exact shifts."""
    logits = (rows(TOKENS, 37) * 64).round() / 64 + shift
    check_logprobs({"logits": logits}, target_ids(TOKENS, 37), fused)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_likely_word_keeps_the_digits_of_its_gradient(dtype: torch.dtype, fused: str) -> None:
    """p - 1 is -4e-4. Computed from p in bfloat16 it would be 0, and the target column has no other term."""
    logits, targets = rows(TOKENS, 37, spread=1.0), target_ids(TOKENS, 37)
    logits[torch.arange(TOKENS), targets] = 12.0
    check_logprobs({"logits": logits.to(dtype)}, targets, fused)


@pytest.mark.parametrize("vocab", [7, WIDE])
def test_nothing_after_the_last_word_is_read(vocab: int, fused: str) -> None:
    """V is no multiple of any block size, and the memory after a row is NaN."""
    padded = torch.full((TOKENS, vocab + 100), torch.nan, device=DEVICE)
    padded[:, 50:-50] = rows(TOKENS, vocab)
    inside = padded[:, 50:-50]
    check_logprobs({"logits": inside}, target_ids(TOKENS, vocab), fused)


FORBIDDEN = {
    "one word": lambda v, y: v == (y + 1) % len(v),
    "all but the target": lambda v, y: v != y,
    "the first half": lambda v, y: (v < len(v) // 2) & (v != y),
    "all before the target": lambda v, y: v < y,
    "all after the target": lambda v, y: v > y,
}


@pytest.mark.parametrize("vocab", [7, WIDE])
@pytest.mark.parametrize("which", FORBIDDEN)
def test_forbidden_words(which: str, vocab: int, impl: str) -> None:
    """-inf has no probability, entropy or gradient; whole blocks of -inf must not compute -inf - -inf."""
    targets = torch.tensor([vocab - 1, vocab // 2, 1, 0], device=DEVICE)
    forbidden = torch.stack([FORBIDDEN[which](torch.arange(vocab, device=DEVICE), y) for y in targets])
    low = rows(len(targets), vocab).masked_fill(forbidden, -1e5)
    logits = low.masked_fill(forbidden, -math.inf)
    ones = torch.ones(len(targets), device=DEVICE)
    problem = Problem(
        {"logits": logits},
        {"targets": targets, "weights": ones, "advantages": ones, "ref_logprobs": -ones},
        ck.LossSpec(entropy_coef=0.1, kl_coef=0.1),
    )
    got = loss_results(problem, impl)
    finite = replace(problem, leaves={"logits": low})
    exact, same = loss_results(finite.double, "reference"), loss_results(finite, "reference")
    # All results are 0 where only the target is allowed.
    check(got, same, exact, {name: 1 + float(x.norm()) for name, x in exact.items()}, None)
    assert got["gradient by logits"][forbidden].abs().max() == 0


def test_a_forbidden_target_is_impossible(impl: str) -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]], device=DEVICE)
    logp, entropy = ck.token_logprobs(logits, target_ids(1, 3) * 0 + 1, entropy=True, impl=impl)
    assert logp.tolist() == [-math.inf]
    assert entropy.isfinite().all()


@pytest.mark.parametrize("where", ["first", "target", "last"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("vocab", [7, WIDE])
def test_nan_in_a_trained_row_appears_in_its_row_only(vocab: int, value: float, where: str, impl: str) -> None:
    """Maximum instructions drop NaN, but a broken model must show in the loss."""
    logits, targets, ones = rows(3, vocab), target_ids(3, vocab), torch.ones(3, device=DEVICE)
    logits[1, {"first": 0, "target": int(targets[1]), "last": -1}[where]] = value
    logits.requires_grad_()
    result = ck.policy_loss(logits, targets, weights=ones, advantages=ones, impl=impl)
    result.loss.backward()
    assert result.loss.isnan()
    assert result.logprobs.isnan().tolist() == result.entropy.isnan().tolist() == [False, True, False]
    assert logits.grad.isnan().any(-1).tolist() == [False, True, False]
    assert result.metrics["entropy"].isnan()


@pytest.mark.parametrize("make", thinned([logits_problem, linear_problem], step=2))
@pytest.mark.parametrize("stale", thinned([math.nan, math.inf, -3e38], step=3))
def test_no_exp_of_rows_of_weight_0(stale: float, make, impl: str) -> None:
    """The same bits for any contents of those rows, metrics included; the results of those rows are 0."""
    spec = ck.LossSpec(ratio="sequence", kl_coef=0.1, kl_ratio=True, entropy_coef=0.1, is_mode="mask")
    problem = make(spec)
    untrained, rows = ~problem.trained_T, next(iter(problem.leaves))
    assert 0 < untrained.sum() < len(untrained)

    def filled(value: float) -> tuple[dict, dict]:
        names = ("advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs")
        changed = with_others(problem, **{name: problem.others[name].masked_fill(untrained, value) for name in names})
        leaves = {**problem.leaves, rows: problem.leaves[rows].masked_fill(untrained[:, None], value)}
        changed = replace(changed, leaves=leaves)
        return loss_results(changed, impl), changed.call(impl).metrics

    for want, got in zip(filled(0.0), filled(stale), strict=True):
        for name, value in want.items():
            assert torch.equal(got[name], value), name
    got, _ = filled(stale)
    assert got[f"gradient by {rows}"][untrained].abs().max() == 0
    assert got["logprobs"][untrained].abs().max() == got["entropy"][untrained].abs().max() == 0


@pytest.mark.parametrize("far", [-50.0, 50.0])
@pytest.mark.parametrize("objective", ["ppo", "cispo"])
def test_a_difference_beyond_20_is_clamped_and_gives_no_gradient(objective: str, far: float, impl: str) -> None:
    spec = ck.LossSpec(objective=objective, clip_high=1e9, kl_coef=1e-9, is_mode="truncate", is_high=None)
    problem = logits_problem(spec, seed=2)
    old = problem.others["old_logprobs"]
    moved = with_others(problem, old_logprobs=old - far, ref_logprobs=old + far, rollout_logprobs=old - 2 * far)
    check_loss(moved, impl)
    metrics = moved.call(impl).metrics
    limit = math.copysign(20, far)
    assert metrics["ratio_min"].item() == pytest.approx(math.exp(limit), rel=1e-5)
    assert metrics["is_weight_max"].item() == pytest.approx(math.exp(limit), rel=1e-5)
    assert metrics["ref_kl"].item() == pytest.approx(math.exp(limit) - limit - 1, rel=1e-5)
    assert metrics["approx_kl"].item() == pytest.approx(math.exp(limit) - limit - 1, rel=1e-5)
    if objective == "ppo":
        assert metrics["active_count"] == 0


def test_a_clip_range_of_width_0_keeps_the_gradient_of_the_current_policy(impl: str) -> None:
    """rho and both bounds are 1: a row at its clip bound keeps its gradient."""
    problem = with_others(logits_problem(ck.LossSpec(clip_low=0, clip_high=0)), old_logprobs=None)
    check_loss(problem, impl)
    metrics = problem.call(impl).metrics
    assert metrics["clip_low_count"] == metrics["clip_high_count"] == 0
    assert metrics["active_frac"] == 1


@pytest.mark.parametrize("op", ["loss", "logprobs"])
def test_the_weight_gradient_is_summed_in_float32(op: str, impl: str) -> None:
    """512 one-row chunks of equal gradients: a bfloat16 sum would stop growing at 256."""
    tokens = 512
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16, device=DEVICE)
    weight, bias = (torch.zeros(size, dtype=torch.bfloat16, device=DEVICE).requires_grad_() for size in ((2, 1), (2,)))
    arguments = {"targets": target_ids(tokens, 1), "bias": bias, "chunk_tokens": 1, "impl": impl}
    if op == "loss":
        twos = torch.full((tokens,), 2.0, device=DEVICE)
        loss = ck.linear_policy_loss(hidden, weight, weights=twos, advantages=-twos / 2, **arguments).loss
    else:
        loss = (2 * ck.linear_token_logprobs(hidden, weight, **arguments)).sum()
    loss.backward()
    assert weight.grad.dtype == bias.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == bias.grad.tolist() == [512.0, -512.0]


@pytest.mark.parametrize("factor", thinned([3.0, -0.25, 0.0, 1.0], step=4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_factor_on_the_loss_scales_the_gradient(dtype: torch.dtype, factor: float, impl: str) -> None:
    """As in gradient accumulation and loss scaling. The factor may be a tensor, which the host need not read."""
    problem = logits_problem(ck.LossSpec(entropy_coef=0.1), dtype)
    plain, scaled = (problem.leaves["logits"].clone().requires_grad_() for _ in range(2))
    problem.call(impl, {"logits": plain}).loss.backward()
    (problem.call(impl, {"logits": scaled}).loss * torch.tensor(factor, device=DEVICE) + 3).backward()
    assert scaled.grad.dtype == dtype
    torch.testing.assert_close(scaled.grad, plain.grad * factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_offsets_past_31_bits(dtype: torch.dtype, impl: str) -> None:
    """Rows 2^30 elements apart; the memory between them is never touched, so it is never allocated."""
    stride, vocab = 2**30 + 64, 67
    kept = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    far = torch.empty(2 * stride + vocab, dtype=dtype, device=DEVICE).as_strided((3, vocab), (stride, 1))
    torch.utils.deterministic.fill_uninitialized_memory = kept

    class Spread(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return far.copy_(x).detach()

        @staticmethod
        def backward(ctx, grad):
            return grad.clone()

    problem = logits_problem(ck.LossSpec(entropy_coef=0.1), dtype, lengths=(3,), vocab=vocab, untrained=0.0)
    for inplace in (False, True):
        leaf = problem.leaves["logits"].clone().requires_grad_()
        near = leaf.detach().clone().requires_grad_()
        want = problem.call(impl, {"logits": near})
        got = problem.call(impl, {"logits": Spread.apply(leaf)}, inplace=inplace)
        want.loss.backward()
        got.loss.backward()
        torch.testing.assert_close(got.loss, want.loss)
        torch.testing.assert_close(leaf.grad, near.grad)
        assert leaf.grad[2].abs().max() > 0
