"""Shapes, strides, masks and modes at their edges, for every implementation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from calls import DTYPES, EVERYTHING, NORMS, PROBLEMS, SPECS, assert_same_bits, call
from criterion import (
    check,
    check_loss,
    eager_logprobs,
    eager_loss,
    logprobs_results,
    loss_magnitude,
    loss_results,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import DEVICE, INTERPRETED, thinned
from problems import TOKENS, VOCAB, Problem, linear_problem, logits_problem

import capo_kernels as ck

# ---- layouts ----


def spaced(x: torch.Tensor, stride: int, offset: int) -> torch.Tensor:
    """The same values in rows `stride` elements apart, from `offset` in the storage, with NaN in between."""
    storage = x.new_full((x.shape[0] * stride + offset,), torch.nan)
    return storage.as_strided(x.shape, (stride, 1), offset).copy_(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("extra", "offset"), thinned([(0, 1), (3, 0), (7, 3), (14, 8), (51, 5)], step=2))
def test_strided_and_unaligned_rows(extra: int, offset: int, dtype: torch.dtype, fused: str) -> None:
    problem = logits_problem(EVERYTHING, dtype)
    logits = spaced(problem.leaves["logits"], VOCAB + extra, offset)
    assert logits.storage_offset() == offset
    check_loss(replace(problem, leaves={"logits": logits}), fused)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_layouts_of_the_logits(dtype: torch.dtype, fused: str) -> None:
    """Strided columns, column-major, and one row expanded to all rows."""
    problem = logits_problem(EVERYTHING, dtype)
    logits = problem.leaves["logits"]
    every_third = torch.stack([logits, logits, logits], -1).flatten(1)[:, ::3]
    for moved in (every_third, logits.T.contiguous().T):
        check_loss(replace(problem, leaves={"logits": moved}), fused)
    row = logits[problem.trained_T][:1]
    check_loss(replace(problem, leaves={"logits": row.expand_as(logits)}), fused)


@pytest.mark.parametrize("make", PROBLEMS)
def test_unaligned_and_strided_other_arguments(make, impl: str) -> None:
    problem = make(EVERYTHING)
    odd = {name: torch.cat([x[:1], x])[1:] for name, x in problem.others.items()}
    every_other = {name: torch.stack([x, x], 1)[:, 1] for name, x in problem.others.items() if name != "cu_seqlens"}
    narrow = {"targets": problem.others["targets"].int()}
    for changes in (odd, every_other, narrow):
        moved = replace(problem, others={**problem.others, **changes})
        assert_same_bits(call(moved, impl), call(problem, impl))


@pytest.mark.parametrize("name", ["hidden", "weight"])
def test_strided_inputs_of_the_linear_path(name: str, impl: str) -> None:
    problem = linear_problem(EVERYTHING)
    x = problem.leaves[name]
    for moved in (torch.cat([x, x], 1)[:, : x.shape[1]], x.T.contiguous().T):
        check_loss(replace(problem, leaves={**problem.leaves, name: moved}), impl)


# ---- sizes ----


def empty(**sizes: tuple[int, ...]) -> Problem:
    leaves = {name: torch.zeros(size, device=DEVICE) for name, size in sizes.items()}
    none = torch.zeros(0, device=DEVICE)
    names = ("weights", "advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs")
    cu_seqlens = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    return Problem(leaves, {"targets": none.long(), "cu_seqlens": cu_seqlens, **dict.fromkeys(names, none)}, EVERYTHING)


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "everything"])
@pytest.mark.parametrize(
    "problem", [empty(logits=(0, 4)), empty(hidden=(0, 3), weight=(4, 3))], ids=["logits", "linear"]
)
def test_no_tokens(problem: Problem, spec: ck.LossSpec, impl: str) -> None:
    found = call(replace(problem, spec=spec), impl)
    assert found["loss"] == found["tokens"] == 0
    assert found["logprobs"].shape == found["entropies"].shape == (0,)
    assert found["ratio_min"].isnan()
    assert found["ratio_mean"].isnan()
    for name, x in problem.leaves.items():
        assert torch.equal(found[name], torch.zeros_like(x))


def test_log_probs_of_no_tokens(impl: str) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    leaves = [torch.zeros(size, device=DEVICE).requires_grad_() for size in ((0, 4), (0, 3), (4, 3))]
    outputs = (
        ck.token_logprobs(leaves[0], none, entropy=True, impl=impl),
        ck.linear_token_logprobs(*leaves[1:], none, entropy=True, impl=impl),
    )
    for pair in outputs:
        assert all(x.shape == (0,) and x.dtype == torch.float32 for x in pair)
        (pair[0] + pair[1]).sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in leaves)


@pytest.mark.parametrize("vocab", [1, 2, 50])
@pytest.mark.parametrize("make", PROBLEMS)
def test_one_token(make, vocab: int, impl: str) -> None:
    problem = make(EVERYTHING, lengths=(1,), vocab=vocab, untrained=0.0)
    found, want = (call(p, i) for p, i in ((problem, impl), (problem.double, "reference")))
    for name, value in want.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-5, atol=2e-6, equal_nan=True, msg=name)


@pytest.mark.parametrize("entropy", [0.0, 0.1])
@pytest.mark.parametrize("vocab", [16_384, 16_388])
def test_rows_of_whole_vectors_in_several_blocks(vocab: int, entropy: float, impl: str) -> None:
    """The last block is full, or has only four words."""
    spec = replace(EVERYTHING, softcap=None, entropy_coef=entropy)
    check_loss(logits_problem(spec, lengths=(2,), vocab=vocab, untrained=0.0), impl)


def test_a_vocabulary_of_one_word_has_log_prob_0(impl: str) -> None:
    found = call(logits_problem(replace(EVERYTHING, softcap=None, temperature=0.3), vocab=1), impl)
    assert all(found[name].abs().max() < 1e-6 for name in ("logprobs", "entropies", "logits"))


# ---- the linear path's own options ----


def only_rows(problem: Problem, rows: torch.Tensor) -> Problem:
    """The problem with weight 0 in all other rows."""
    weights = torch.zeros_like(problem.others["weights"])
    weights[rows] = problem.others["weights"][rows]
    return replace(problem, others={**problem.others, "weights": weights})


ROWS = {"some": slice(3, 20, 2), "all": slice(0, 24), "none": slice(0, 0)}


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("which", ROWS)
def test_chosen_rows(which: str, ratio: str, impl: str) -> None:
    """Other rows count as rows of weight 0. "all" includes rows of weight 0, whose NaN must not enter the GEMMs."""
    problem = linear_problem(replace(EVERYTHING, ratio=ratio, is_mode=None))
    rows = torch.arange(TOKENS, device=DEVICE)[ROWS[which]]
    want, got = call(only_rows(problem, rows), "reference"), call(problem, impl, rows=rows, chunk_tokens=5)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=2e-5, atol=2e-6, equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["loss", "logprobs"])
def test_a_float32_head(op: str, dtype: torch.dtype, impl: str) -> None:
    """The logits are never rounded, so log-probs are as exact as with float32 inputs."""
    problem = linear_problem(EVERYTHING, dtype)
    wide = replace(problem, leaves={name: x.float() for name, x in problem.leaves.items()})
    if op == "loss":
        exact, same = eager_loss(wide.double), eager_loss(wide)
        got = loss_results(problem, impl, logits_dtype="float32", chunk_tokens=7)
        assert {got[f"gradient by {name}"].dtype for name in problem.leaves} == {dtype}
    else:
        targets = problem.others["targets"].clamp(min=0)
        problem, wide = problem.tidy(), wide.tidy()
        got = logprobs_results(problem.leaves, targets, impl, logits_dtype="float32", chunk_tokens=7)
        exact, same = (eager_logprobs(p.leaves, targets) for p in (wide.double, wide))
    same = {name: x.to(got[name].dtype) for name, x in same.items()}
    check(got, same, exact, {"loss": loss_magnitude(problem, exact)} if op == "loss" else {}, None)


# ---- masks and groups ----


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("spec", SPECS, ids=["plain", "everything"])
def test_nothing_trained(make, spec: ck.LossSpec, impl: str) -> None:
    """Every row of every argument is NaN."""
    problem = make(spec)
    nothing = {name: x * torch.nan if x.is_floating_point() else x for name, x in problem.others.items()}
    nothing["weights"] = torch.zeros_like(problem.others["weights"])
    rows = next(iter(problem.leaves))
    leaves = {**problem.leaves, rows: problem.leaves[rows] * torch.nan}
    found = call(replace(problem, leaves=leaves, others=nothing), impl)
    assert found["loss"] == found["tokens"] == found["active_count"] == 0
    assert found["ratio_max"].isnan()
    for name in ("logprobs", "entropies", *problem.leaves):
        assert torch.equal(found[name], torch.zeros_like(found[name])), name


def test_every_row_trained_and_negative_weights(fused: str) -> None:
    """A weight may have any sign; only 0 means that a row is not trained."""
    problem = logits_problem(untrained=0.0)
    check_loss(problem, fused)
    weights = problem.others["weights"] * (1 - 2 * (torch.arange(TOKENS, device=DEVICE) % 2))
    check_loss(replace(problem, others={**problem.others, "weights": weights}), fused)


def test_advantages_of_0_give_no_gradient(impl: str) -> None:
    problem = logits_problem()
    advantages = torch.zeros_like(problem.others["advantages"])
    found = call(replace(problem, others={**problem.others, "advantages": advantages}), impl)
    assert found["loss"] == found["active_count"] == 0
    assert found["logits"].abs().max() == 0


def credit_for(problem: Problem, outcomes: list[float], groups: list[int], seed: int = 0, **options) -> ck.Credit:
    """Random steps and votes; the first tokens of some sequences belong to no step."""
    g = torch.Generator().manual_seed(seed)
    starts = torch.rand(len(problem.trained_T), generator=g) < 0.3
    wrong = (torch.rand(int(starts.sum()), generator=g) < 0.4).float()
    outcome, group = torch.tensor(outcomes), torch.tensor(groups)
    tensors = [x.to(DEVICE) for x in (starts, wrong, outcome, group)]
    return ck.Credit(*tensors, problem.others["cu_seqlens"], **options)


def with_credit(problem: Problem, credit: ck.Credit) -> Problem:
    others = {name: x for name, x in problem.others.items() if name != "advantages"}
    return replace(problem, others={**others, "credit": credit})


def exact_advantages(credit: ck.Credit, trained_T: torch.Tensor) -> torch.Tensor:
    """float64 [T], from `credit_stats`: A = (C outcome - shift) scale + (-P wrong - shift) scale."""
    shift0_B, scale0_B, shift1_B, scale1_B = ck.credit_stats(credit, trained_T)[credit.group.long()].double().unbind(1)
    advantages = []
    step = -1
    ends = credit.cu_seqlens.tolist()
    for b, (start, end) in enumerate(itertools.pairwise(ends)):
        inside = False
        for t in range(start, end):
            inside = inside or bool(credit.step_starts[t])
            step += int(credit.step_starts[t])
            process = -credit.process_weight * credit.step_wrong[step].double() if inside else 0.0
            outcome = credit.outcome_weight * credit.outcome[b].double()
            advantages.append((outcome - shift0_B[b]) * scale0_B[b] + (process - shift1_B[b]) * scale1_B[b])
    return torch.stack(advantages).where(trained_T, 0.0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", PROBLEMS)
def test_credit_against_float64(make, norm: str, impl: str) -> None:
    """Two groups, one of them with one sequence. The empty sequence belongs to the first group."""
    plain = make(ck.LossSpec(kl_coef=0.1, entropy_coef=0.1), seed=3)
    problem = with_credit(plain, credit_for(plain, [1.0, 0.0, 1.0, 0.0], [5, 2, 5, 5], norm=norm))
    advantages = exact_advantages(problem.others["credit"], plain.trained_T)
    exact_problem = replace(plain.double, others={**plain.double.others, "advantages": advantages})
    exact, same, got = eager_loss(exact_problem), eager_loss(problem), loss_results(problem, impl)
    assert exact["loss"].abs() > 1e-3
    check(got, same, exact, {"loss": loss_magnitude(exact_problem, exact)}, plain.dtype if plain.linear else None)


@pytest.mark.parametrize("norm", NORMS[:3])
def test_a_group_of_equal_outcomes_has_no_gradient(norm: str, impl: str) -> None:
    """All outcomes are equal and no step is wrong: the spread is 0, and the advantage is 0, not 0 / 0."""
    plain = logits_problem()
    credit = credit_for(plain, [1.0] * 4, [0] * 4, norm=norm)
    credit = replace(credit, step_wrong=torch.zeros_like(credit.step_wrong))
    found = call(with_credit(plain, credit), impl)
    assert found["loss"] == found["active_count"] == 0
    assert found["logits"].abs().max() == 0


def part(problem: Problem, first: int, last: int) -> Problem:
    """The sequences [first, last) as a separate call."""
    ends = problem.others["cu_seqlens"].tolist()
    cut = slice(ends[first], ends[last])
    others = {name: x[cut] for name, x in problem.others.items() if name not in ("cu_seqlens", "credit")}
    others["cu_seqlens"] = problem.others["cu_seqlens"][first : last + 1] - ends[first]
    if "credit" in problem.others:
        whole = problem.others["credit"]
        before = int(whole.step_starts[: ends[first]].sum())
        steps = slice(before, before + int(whole.step_starts[cut].sum()))
        rows = (whole.outcome[first:last], whole.group[first:last], others["cu_seqlens"])
        stats = ck.credit_stats(whole, problem.trained_T)
        others["credit"] = replace(
            ck.Credit(whole.step_starts[cut], whole.step_wrong[steps], *rows, stats=stats), norm=whole.norm
        )
    name = next(iter(problem.leaves))
    return replace(problem, leaves={**problem.leaves, name: problem.leaves[name][cut]}, others=others)


@given(st.sampled_from(NORMS), st.sampled_from(PROBLEMS), st.sampled_from(["token", "sequence"]), st.integers(1, 3))
@settings(max_examples=8 if INTERPRETED else 25, deadline=None, derandomize=True)
def test_a_group_split_over_calls(impl: str, norm, make, ratio, cut) -> None:
    """With the group's statistics and the batch's weights, the parts add up to the whole, metrics included."""
    plain = make(ck.LossSpec(ratio=ratio, kl_coef=0.1, entropy_coef=0.1), seed=cut)
    problem = with_credit(plain, credit_for(plain, [1.0, 0.0, 1.0, 0.5], [0, 0, 0, 0], norm=norm))
    whole = call(problem, impl)
    parts = [call(part(problem, *ends), impl) for ends in ((0, cut), (cut, 4))]
    keys = problem.call(impl).metrics.keys()
    together = ck.combine_metrics([{key: found[key] for key in keys} for found in parts])
    rows = next(iter(problem.leaves))
    for name in whole.keys() - keys:
        pieces = [found[name] for found in parts]
        together[name] = torch.cat(pieces) if name in ("logprobs", "entropies", rows) else pieces[0] + pieces[1]
    for name, value in whole.items():
        torch.testing.assert_close(together[name], value, rtol=2e-5, atol=2e-6, equal_nan=True, msg=name)


# ---- targets ----


@pytest.mark.parametrize("target", [-1, -100, VOCAB, 2**31 - 1])
def test_a_target_outside_the_vocabulary(target: int, impl: str, monkeypatch) -> None:
    """If values are not checked, its row is NaN and nothing is read out of bounds; `reference` raises."""
    monkeypatch.setattr("capo_kernels.api.reads_values", lambda *tensors: False)
    monkeypatch.setattr("capo_kernels.spec.reads_values", lambda *tensors: False)
    if impl == "reference":
        pytest.skip("torch's gather: an error on the CPU, an assertion on the device on CUDA")
    logits = torch.zeros(3, VOCAB, device=DEVICE).requires_grad_()
    targets, ones = torch.tensor([1, target, 2], device=DEVICE), torch.ones(3, device=DEVICE)
    result = ck.policy_loss(logits, targets, weights=ones, advantages=ones, impl=impl)
    assert result.loss.isnan()
    assert result.logprobs.isnan().tolist() == [False, True, False]
    (grad,) = torch.autograd.grad(result.loss, logits)
    assert not grad[[0, 2]].isnan().any()
    logp = ck.token_logprobs(logits, targets, impl=impl)
    assert logp.isnan().tolist() == [False, True, False]
