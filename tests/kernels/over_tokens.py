"""Checks of the kernels over T, for any implementation: credit, and sums over sequences and results."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from calls import unchecked
from implementations import DEVICE, thinned

import capo_kernels as ck
from capo_kernels.credit import step_of_tokens
from capo_kernels.fused.arguments import token_arguments
from capo_kernels.fused.custom_ops import KERNELS
from capo_kernels.metrics import RAW
from capo_kernels.rows import NORMS, TERMS, Results, TokenArguments
from capo_kernels.segments import sequence_of_tokens
from capo_kernels.spec import LossInputs

LENGTHS = (1300, 0, 1, 700, 258, 40)
"""Longer than a block of any implementation, empty, and of one token."""
GROUPS = (7, 3, 3, 7, 2, 3)
TINY = 2**-21


def arguments(
    credit: ck.Credit | None, weights: torch.Tensor, impl: str, spec: ck.LossSpec, **others
) -> TokenArguments:
    given = dict.fromkeys(("old_logprobs", "ref_logprobs", "rollout_logprobs", "cu_seqlens")) | others
    logp_T = given.pop("logp", None)
    advantages = torch.zeros_like(weights) if credit is None else None
    return token_arguments(LossInputs(weights, advantages, credit, **given), spec, logp_T, impl)


def advantages(credit: ck.Credit, weights: torch.Tensor, impl: str) -> torch.Tensor:
    return arguments(credit, weights, impl, ck.LossSpec()).advantage


def packed_credit(norm: str, seed: int = 0) -> tuple[ck.Credit, torch.Tensor]:
    """Credit and weights. Step starts are not aligned to vectors, and a third of the tokens is not trained."""
    g = torch.Generator().manual_seed(seed)
    tokens = sum(LENGTHS)
    starts = (torch.rand(tokens + 5, generator=g) < 0.02)[5:]
    wrong = (torch.rand(int(starts.sum()), generator=g) < 0.4).float() * 0.7
    outcome = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.5])
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    weights = torch.rand(tokens, generator=g) * (torch.rand(tokens, generator=g) > 0.3)
    tensors = [x.to(DEVICE) for x in (starts, wrong, outcome, torch.tensor(GROUPS), cu_seqlens)]
    return ck.Credit(*tensors, norm=norm, std_floor=0.1, process_weight=0.3), weights.to(DEVICE)


def check_credit(impl: str) -> None:
    for norm, narrow in thinned(zip(NORMS, itertools.cycle((False, True, True))), step=2):
        credit, weights = packed_credit(norm)
        case = replace(credit, group=credit.group.int()) if narrow else credit
        same_advantages(case, weights, impl)


def check_credit_with_statistics(impl: str) -> None:
    stats = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for dtype in (torch.int32, torch.int64):
        credit, weights = packed_credit("none")
        same_advantages(replace(credit, stats=stats, group=credit.group.to(dtype)), weights, impl)


def same_advantages(credit: ck.Credit, weights: torch.Tensor, impl: str) -> None:
    got, want = advantages(credit, weights, impl), ck.token_advantages(credit, weights != 0)
    assert want.abs().max() > 0.1
    assert (got - want)[weights != 0].abs().max() <= 4 * TINY * want.abs().max(), credit.norm


def check_credit_that_misses_votes_or_groups(impl: str) -> None:
    credit, weights = packed_credit("none")
    sequence_T = sequence_of_tokens(credit.cu_seqlens, len(weights))
    fewer = unchecked(credit, step_wrong=credit.step_wrong[:-3])
    missed_T = step_of_tokens(credit, sequence_T) >= len(fewer.step_wrong)
    assert missed_T.any()
    assert torch.equal(advantages(fewer, weights, impl).isnan(), missed_T)
    group = credit.group.where(credit.group != 2, -2)
    given = unchecked(credit, group=group, stats=torch.ones(7, 4, device=DEVICE))
    unknown_B = (group < 0) | (group >= 7)
    assert torch.equal(advantages(given, weights, impl).isnan(), unknown_B[sequence_T])


def check_sequences(impl: str) -> None:
    """The clamped mean of logp - old, and the sum of old - rollout. NaN in rows of weight 0 is not read."""
    credit, weights = packed_credit("none")
    g = torch.Generator().manual_seed(2)
    logp, old, rollout = (torch.randn(3, sum(LENGTHS), generator=g).to(DEVICE) * 0.3).where(weights != 0, torch.nan)
    logp = logp - torch.linspace(0, 60, sum(LENGTHS), device=DEVICE)
    spec = ck.LossSpec(ratio="sequence", is_mode="mask", is_level="sequence")
    others = {"logp": logp, "old_logprobs": old, "rollout_logprobs": rollout, "cu_seqlens": credit.cu_seqlens}
    got = arguments(None, weights, impl, spec, **others)
    for start, end in itertools.pairwise(credit.cu_seqlens.tolist()):
        kept = torch.arange(start, end, device=DEVICE)[weights[start:end] != 0]
        mean = (logp - old)[kept].double().sum() / max(len(kept), 1)
        sums = (old - rollout)[kept].double().sum()
        close(got.sequence_log_ratio[start:end], mean.clamp(-20, 20))
        close(got.importance[start:end], sums)
    current = arguments(None, weights, impl, spec, **{**others, "old_logprobs": None})
    assert current.sequence_log_ratio.abs().max() == 0
    first = torch.arange(LENGTHS[0], device=DEVICE)[weights[: LENGTHS[0]] != 0]
    close(current.importance[: LENGTHS[0]], (logp - rollout)[first].double().sum())


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want.float().expand_as(got), rtol=1e-6, atol=1e-6)


def check_summary(impl: str) -> None:
    """The summary of more rows than a block has. NaN of a trained row reaches every figure computed from it."""
    g = torch.Generator().manual_seed(3)
    results = Results(*(torch.rand(size, generator=g).to(DEVICE) for size in ((1500,), (1500,), (1500, len(TERMS)))))
    weights = (torch.rand(1500, generator=g) > 0.3).float().to(DEVICE)
    rows = dict(zip(TERMS, results.terms[weights != 0].double().unbind(1), strict=True))
    loss, raw = summary(weights, results, impl)
    close(loss, rows["loss"].sum())
    for name, column in (
        ("ratio", "ratio"),
        ("approx_kl", "approx_kl"),
        ("ref_kl", "ref_kl"),
        ("is_weight", "is_weight"),
    ):
        close(raw[f"{name}_sum"], rows[column].sum())
    for name in ("clip_low", "clip_high", "active"):
        close(raw[f"{name}_count"], rows[name].sum())
    close(raw["tokens"], (weights != 0).sum())
    close(raw["entropy_sum"], results.entropy[weights != 0].double().sum())
    close(raw["is_weight_sq_sum"], rows["is_weight"].square().sum())
    for name, want in (("ratio_min", rows["ratio"].min()), ("ratio_max", rows["ratio"].max())):
        close(raw[name], want)
    close(raw["is_weight_max"], rows["is_weight"].max())
    results.terms[weights == 0] = torch.nan
    results.terms[int((weights != 0).nonzero()[3]), [TERMS.index("ratio"), TERMS.index("is_weight")]] = torch.nan
    _, found = summary(weights, results, impl)
    with_nan = {"ratio_sum", "ratio_min", "ratio_max", "is_weight_sum", "is_weight_sq_sum", "is_weight_max"}
    assert {name for name, x in found.items() if x.isnan()} == with_nan


def summary(weights: torch.Tensor, results: Results, impl: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, raw = weights.new_full((), torch.nan), weights.new_full((len(RAW),), torch.nan)
    KERNELS[impl].summary(weights, results, True, True, loss, raw)
    return loss, dict(zip(RAW, raw.unbind(), strict=True))


CHECKS = [
    check_credit,
    check_credit_with_statistics,
    check_credit_that_misses_votes_or_groups,
    check_sequences,
    check_summary,
]
