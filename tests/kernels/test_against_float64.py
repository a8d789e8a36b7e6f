"""Every implementation against float64, by the criterion, over the whole of LossSpec: forward and every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from covering import covering
from criterion import check_logprobs, check_loss
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from implementations import DEVICE, INTERPRETED, refusal, thinned
from problems import TOKENS, linear_problem, logits_problem

import capo_kernels as ck

OBJECTIVES = [
    {"objective": "ppo"},
    {"objective": "ppo", "clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5},
    {"objective": "cispo", "clip_high": 0.1},
    {"objective": "cispo", "clip_high": -0.3},
    {"objective": "reinforce"},
]
ESTIMATORS = [{}, *({"kl_coef": 0.7, "kl_estimator": k} for k in ("k1", "k2", "k3"))]
IMPORTANCE = [
    {},
    {"is_mode": "truncate", "is_high": 1.1},
    {"is_mode": "mask", "is_low": 0.8, "is_high": 1.3},
    {"is_mode": "mask", "is_low": 0.7, "is_high": None},
]
LEVELS = ["token", "sequence"]
HEADS = [{}, {"temperature": 0.7}, {"softcap": 2.5}, {"temperature": 1.6, "softcap": 4.0}]
ENTROPY = [0.0, 0.3, -0.1]
NARROW = [torch.bfloat16, torch.float16]


def id_of(option) -> str | None:
    if not isinstance(option, dict):
        return None
    return "-".join(f"{key}={value}" for key, value in option.items()) or "plain"


# Triples, or pairs under the interpreter. The importance weight multiplies the objective, so some terms have four
# factors; faults that need all four are left to test_any_loss.
TERMS = covering(OBJECTIVES, LEVELS, ESTIMATORS, [False, True], IMPORTANCE, LEVELS, strength=2 if INTERPRETED else 3)


@pytest.mark.parametrize(("objective", "ratio", "kl", "kl_ratio", "importance", "is_level"), TERMS, ids=id_of)
def test_objective_ratio_kl_and_importance(objective, ratio, kl, kl_ratio, importance, is_level, fused: str) -> None:
    spec = ck.LossSpec(ratio=ratio, kl_ratio=kl_ratio, is_level=is_level, **objective, **kl, **importance)
    check_loss(logits_problem(spec), fused)


@pytest.mark.parametrize(("head", "entropy_coef"), thinned(itertools.product(HEADS, ENTROPY), step=2), ids=id_of)
def test_head_and_entropy(head: dict, entropy_coef: float, fused: str) -> None:
    for objective in thinned(OBJECTIVES, step=5):
        spec = ck.LossSpec(entropy_coef=entropy_coef, kl_coef=0.1, **head, **objective)
        check_loss(logits_problem(spec, seed=3), fused)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("head", HEADS, ids=id_of)
def test_narrow_logits(head: dict, dtype: torch.dtype, fused: str) -> None:
    """Log-probs, entropies and loss are float32 and must have the accuracy of float32 arithmetic."""
    for objective, entropy_coef in thinned(itertools.product(OBJECTIVES, (0.0, 0.2)), step=10):
        spec = ck.LossSpec(entropy_coef=entropy_coef, kl_coef=0.1, **head, **objective)
        check_loss(logits_problem(spec, dtype, seed=4), fused)


VOCABULARIES = [1, 2, 3, 31, 128, 1009, 4096, 10007, 32771, 65537, 151936]


@pytest.mark.parametrize("vocab", thinned(VOCABULARIES, step=3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_vocabulary(dtype: torch.dtype, vocab: int, fused: str) -> None:
    spec = ck.LossSpec(entropy_coef=0.1, kl_coef=0.1)
    lengths = (2,) if INTERPRETED else (9,) if vocab > 20000 else (20, 11)
    check_loss(logits_problem(spec, dtype, lengths=lengths, vocab=vocab, untrained=0.0, seed=5), fused)


specs = st.builds(
    lambda *parts: {key: value for part in parts for key, value in part.items()},
    *(st.sampled_from(x) for x in (OBJECTIVES, ESTIMATORS, IMPORTANCE, HEADS)),
    st.fixed_dictionaries(
        {
            "entropy_coef": st.sampled_from(ENTROPY),
            "ratio": st.sampled_from(LEVELS),
            "kl_ratio": st.booleans(),
            "is_level": st.sampled_from(LEVELS),
        }
    ),
)
few, many = (3, 7) if INTERPRETED else (8, 30)
lengths = st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(lambda x: few <= sum(x) < many)
# With fewer words the gradient by the bias is one number, a sum that cancels, and PyTorch's error in it is chance.
vocab_sizes = st.integers(16, 70)
EXAMPLES = settings(
    max_examples=4 if INTERPRETED else 25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)


@given(specs, lengths, st.integers(2, 70), st.sampled_from([torch.float32, *NARROW]), st.integers(0, 10**6))
@EXAMPLES
def test_any_loss(fused: str, spec, lengths, vocab, dtype, seed) -> None:
    assume(refusal(fused, dtype) is None)
    check_loss(logits_problem(ck.LossSpec(**spec), dtype, lengths=tuple(lengths), vocab=vocab, seed=seed), fused)


@given(specs, lengths, vocab_sizes, st.sampled_from([torch.float32, *NARROW]), st.integers(1, 30))
@EXAMPLES
def test_any_linear_loss(impl: str, spec, lengths, vocab, dtype, chunk) -> None:
    assume(refusal(impl, dtype) is None)
    problem = linear_problem(ck.LossSpec(**spec), dtype, lengths=tuple(lengths), vocab=vocab, seed=chunk)
    check_loss(problem, impl, chunk_tokens=chunk)


@pytest.mark.parametrize("chunk", [1, 7, 24, None])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("ratio", LEVELS)
def test_linear_loss(ratio: str, dtype: torch.dtype, chunk: int | None, impl: str) -> None:
    spec = ck.LossSpec(ratio=ratio, kl_coef=0.3, entropy_coef=0.1, temperature=0.8, is_mode="truncate")
    check_loss(linear_problem(spec, dtype, seed=6), impl, chunk_tokens=chunk)


def outer(entropy: bool) -> dict[str, torch.Tensor] | None:
    return None if entropy else {"logprobs": torch.linspace(-1, 1, TOKENS, device=DEVICE)}


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("temperature", thinned([0.6, 1.0], step=2))
def test_logprobs(temperature: float, entropy: bool, dtype: torch.dtype, fused: str) -> None:
    g = torch.Generator().manual_seed(7)
    for vocab in (50,) if INTERPRETED else (2, 50, 1009, 40009):
        logits = (torch.randn(TOKENS, vocab, generator=g) * 2).to(dtype).to(DEVICE)
        targets = torch.randint(vocab, (TOKENS,), generator=g).to(DEVICE)
        check_logprobs({"logits": logits}, targets, fused, temperature=temperature, outer=outer(entropy))


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_linear_logprobs(chunk: int | None, entropy: bool, dtype: torch.dtype, impl: str) -> None:
    g = torch.Generator().manual_seed(8)
    sizes = {"hidden": (TOKENS, 16), "weight": (37, 16), "bias": (37,)}
    leaves = {name: torch.randn(size, generator=g).div(2).to(dtype).to(DEVICE) for name, size in sizes.items()}
    targets = torch.randint(37, (TOKENS,), generator=g).to(DEVICE)
    check_logprobs(leaves, targets, impl, temperature=0.8, outer=outer(entropy), chunk_tokens=chunk)
