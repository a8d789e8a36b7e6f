"""Log-probs and entropies of logits, and of a linear head in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
def test_both_paths_equal_the_log_softmax(tokens, vocab, temperature, chunk, seed) -> None:
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
