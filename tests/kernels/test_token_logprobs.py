"""Log-probs and entropies, of logits and of a linear head in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import capo_kernels as ck


def problem(tokens: int = 7, hidden: int = 3, vocab: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    sizes = ((tokens, hidden), (vocab, hidden), (vocab,))
    parts = [torch.randn(size, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]
    return *parts, torch.randint(vocab, (tokens,), generator=g)


def test_by_hand() -> None:
    """p = (1/4, 3/4); at temperature 2 p is proportional to (1, sqrt 3)."""
    logits, targets = torch.tensor([[0.0, math.log(3)]] * 2), torch.tensor([0, 1])
    logp, entropy = ck.token_logprobs(logits, targets, entropy=True)
    assert logp.tolist() == pytest.approx([math.log(0.25), math.log(0.75)])
    assert entropy.tolist() == pytest.approx([-0.25 * math.log(0.25) - 0.75 * math.log(0.75)] * 2)
    warm = ck.token_logprobs(logits, targets, temperature=2.0)
    assert warm.exp().tolist() == pytest.approx([1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))])


@given(st.integers(0, 6), st.integers(1, 9), st.floats(0.2, 5), st.integers(1, 8), st.integers(0, 999))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_both_paths_are_the_log_softmax(tokens, vocab, temperature, chunk, seed) -> None:
    hidden, weight, bias, targets = problem(tokens, 3, vocab, seed=seed)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    dist = torch.distributions.Categorical(logits=logits.detach() / temperature, validate_args=False)
    got = ck.token_logprobs(logits, targets, temperature=temperature, entropy=True)
    options = {"bias": bias, "temperature": temperature, "entropy": True, "chunk_tokens": chunk}
    linear = ck.linear_token_logprobs(hidden, weight, targets, **options)
    for logp, entropy in (got, linear):
        torch.testing.assert_close(logp.detach(), dist.log_prob(targets))
        torch.testing.assert_close(entropy.detach(), dist.entropy())
    eager = torch.autograd.grad((got[0].sin() + 2 * got[1]).sum(), (hidden, weight, bias))
    chunked = torch.autograd.grad((linear[0].sin() + 2 * linear[1]).sum(), (hidden, weight, bias))
    for want, grad in zip(eager, chunked, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("which", ["logp", "entropy", "both"])
def test_gradcheck_of_the_linear_path(chunk: int, which: str) -> None:
    hidden, weight, bias, targets = problem(tokens=4, vocab=4)
    keep = {"logp": slice(0, 1), "entropy": slice(1, 2), "both": slice(0, 2)}[which]

    def outputs(hidden, weight, bias):
        options = {"bias": bias, "temperature": 0.8, "entropy": True, "chunk_tokens": chunk}
        return ck.linear_token_logprobs(hidden, weight, targets, **options)[keep]

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_gradcheck_of_the_logits_path() -> None:
    hidden, _, _, targets = problem(hidden=5)
    assert torch.autograd.gradcheck(lambda x: ck.token_logprobs(x, targets, temperature=0.7, entropy=True), hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_are_widened_before_the_temperature(dtype: torch.dtype) -> None:
    """As good as float32 on the logits' own values: a bfloat16 log-prob would be 1e-2 off."""
    logits = torch.randn(64, 33, generator=torch.Generator().manual_seed(1)).mul(4).to(dtype)
    targets = torch.arange(64) % 33
    got, entropy = ck.token_logprobs(logits, targets, temperature=0.7, entropy=True)
    want, want_entropy = ck.token_logprobs(logits.double(), targets, temperature=0.7, entropy=True)
    assert got.dtype == entropy.dtype == torch.float32
    assert (got - want).abs().max() < 3e-6
    assert (entropy - want_entropy).abs().max() < 3e-6


@pytest.mark.parametrize("shift", [-3e4, -100.0, 0.0, 100.0, 3e4])
def test_no_log_prob_above_0_and_no_nan_for_any_level(shift: float) -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)).mul(30) + shift
    logp, entropy = ck.token_logprobs(logits, logits.argmax(-1), entropy=True)
    assert (logp <= 0).all()
    assert logp.isfinite().all()
    assert (entropy >= 0).all()
    assert (entropy <= math.log(4) + 1e-5).all()


def test_forbidden_words_have_neither_entropy_nor_gradient() -> None:
    logits = torch.tensor([[1.0, -math.inf, 2.0, -math.inf]], requires_grad=True)
    logp, entropy = ck.token_logprobs(logits, torch.tensor([2]), entropy=True)
    short = torch.tensor([[1.0, 2.0]], requires_grad=True)
    want = ck.token_logprobs(short, torch.tensor([1]), entropy=True)
    torch.testing.assert_close((logp, entropy), want)
    (logp + entropy).sum().backward()
    (want[0] + want[1]).sum().backward()
    assert logits.grad[0, [1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(logits.grad[:, [0, 2]], short.grad)


def test_strided_rows_and_int32_targets() -> None:
    wide = torch.randn(6, 20, generator=torch.Generator().manual_seed(3))
    targets = torch.arange(6, dtype=torch.int32)
    assert torch.equal(
        ck.token_logprobs(wide[::2, 3:12], targets[:3]), ck.token_logprobs(wide[::2, 3:12].clone(), targets[:3])
    )
    assert torch.equal(ck.token_logprobs(wide.T, targets[[0] * 20]), wide.T.log_softmax(-1)[:, 0])


# ---- the linear path ----


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_never_more_than_a_chunk_of_logits() -> None:
    hidden, weight, _, targets = problem(tokens=60, hidden=2, vocab=100)
    ones = torch.ones(60, dtype=torch.float64)
    spec = ck.LossSpec(entropy_coef=0.1, softcap=5.0)
    with Largest() as largest:
        ck.linear_token_logprobs(hidden, weight, targets, entropy=True, chunk_tokens=7)[0].sum().backward()
        ck.linear_policy_loss(
            hidden, weight, targets, weights=ones, advantages=ones, spec=spec, chunk_tokens=7
        ).loss.backward()
    assert largest.elements == 7 * 100


def test_the_weight_gradient_is_summed_in_float32() -> None:
    """512 one-row chunks of like gradients: summed in bfloat16 the total would stop growing after 256."""
    hidden, weight = (
        torch.ones(512, 1, dtype=torch.bfloat16),
        torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True),
    )
    targets = torch.zeros(512, dtype=torch.int64)
    ck.linear_token_logprobs(hidden, weight, targets, chunk_tokens=1).sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [256.0, -256.0]
    weight.grad, bias = None, torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    (2 * ck.linear_token_logprobs(hidden, weight, targets, bias=bias, chunk_tokens=1)).sum().backward()
    assert weight.grad.flatten().tolist() == bias.grad.tolist() == [512.0, -512.0]


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_unchanged(frozen: int) -> None:
    *parts, targets = problem()
    want = torch.autograd.grad(ck.linear_token_logprobs(*parts[:2], targets, bias=parts[2]).sum(), parts)
    parts[frozen] = parts[frozen].detach()
    ck.linear_token_logprobs(*parts[:2], targets, bias=parts[2], chunk_tokens=2).sum().backward()
    for i, x in enumerate(parts):
        assert (x.grad is None) == (i == frozen)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, want[i])


def test_autocast_changes_nothing() -> None:
    hidden, weight, bias, targets = problem(dtype=torch.float32)
    want = ck.linear_token_logprobs(hidden, weight, targets, bias=bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ck.linear_token_logprobs(hidden, weight, targets, bias=bias)
        logits = ck.token_logprobs(hidden @ weight.T, targets)
    assert torch.equal(got, want)
    assert logits.dtype == torch.float32
