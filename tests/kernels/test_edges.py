"""Shapes, strides, masks and modes at their edges, for every implementation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from criterion import (
    TINY,
    check,
    check_logprobs,
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
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import capo_kernels as ck

EVERYTHING = ck.LossSpec(
    ratio="sequence",
    kl_coef=0.1,
    kl_ratio=True,
    entropy_coef=0.1,
    softcap=20.0,
    dual_clip=3.0,
    is_mode="mask",
    is_level="sequence",
)
"""Each term, and each [T] argument."""
SPECS = [ck.LossSpec(), EVERYTHING]
PROBLEMS = thinned([logits_problem, linear_problem], step=2)
DTYPES = [torch.float32, torch.bfloat16]
NORMS = ["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]


def same_in_every_bit(got: dict, want: dict) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def call(problem: Problem, impl: str, **options) -> dict:
    """Results and metrics."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.leaves.items()}
    result = problem.call(impl, leaves, **options)
    grads = torch.autograd.grad(result.loss, list(leaves.values()))
    found = dict(zip(leaves, grads, strict=True))
    return {**figures(result), **found}


def figures(result: ck.PolicyLoss) -> dict:
    outputs = {"loss": result.loss.detach(), "logprobs": result.logprobs, "entropies": result.entropy}
    return {**outputs, **result.metrics}


# ---- layouts ----


def apart(x: torch.Tensor, stride: int, offset: int) -> torch.Tensor:
    """The same values, rows `stride` elements apart and `offset` into their storage, NaN in between."""
    storage = x.new_full((x.shape[0] * stride + offset,), torch.nan)
    return storage.as_strided(x.shape, (stride, 1), offset).copy_(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("extra", "offset"), thinned([(0, 1), (3, 0), (7, 3), (14, 8), (51, 5)], step=2))
def test_strided_and_unaligned_rows(extra: int, offset: int, dtype: torch.dtype, impl: str) -> None:
    problem = logits_problem(EVERYTHING, dtype)
    logits = apart(problem.leaves["logits"], VOCAB + extra, offset)
    assert logits.storage_offset() == offset
    check_loss(replace(problem, leaves={"logits": logits}), impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_other_layout_of_the_logits(dtype: torch.dtype, impl: str) -> None:
    """Columns apart, columns first, and one row that stands for all."""
    problem = logits_problem(EVERYTHING, dtype)
    logits = problem.leaves["logits"]
    every_third = torch.stack([logits, logits, logits], -1).flatten(1)[:, ::3]
    for moved in (every_third, logits.T.contiguous().T):
        check_loss(replace(problem, leaves={"logits": moved}), impl)
    row = logits[problem.trained_T][:1]
    check_loss(replace(problem, leaves={"logits": row.expand_as(logits)}), impl)


@pytest.mark.parametrize("make", PROBLEMS)
def test_unaligned_and_strided_arguments_beside(make, impl: str) -> None:
    problem = make(EVERYTHING)
    odd = {name: torch.cat([x[:1], x])[1:] for name, x in problem.beside.items()}
    every_other = {name: torch.stack([x, x], 1)[:, 1] for name, x in problem.beside.items() if name != "cu_seqlens"}
    narrow = {"targets": problem.beside["targets"].int()}
    for changes in (odd, every_other, narrow):
        moved = replace(problem, beside={**problem.beside, **changes})
        same_in_every_bit(call(moved, impl), call(problem, impl))


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


def test_one_word_leaves_no_choice(impl: str) -> None:
    found = call(logits_problem(replace(EVERYTHING, softcap=None, temperature=0.3), vocab=1), impl)
    assert all(found[name].abs().max() < 1e-6 for name in ("logprobs", "entropies", "logits"))


# ---- the linear path's own options ----


def only_rows(problem: Problem, rows: torch.Tensor) -> Problem:
    """Weight 0 outside of them."""
    weights = torch.zeros_like(problem.beside["weights"])
    weights[rows] = problem.beside["weights"][rows]
    return replace(problem, beside={**problem.beside, "weights": weights})


ROWS = {"some": slice(3, 20, 2), "all": slice(0, 24), "none": slice(0, 0)}


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("which", ROWS)
def test_chosen_rows(which: str, ratio: str, impl: str) -> None:
    """The others count as if their weight were 0. "all" holds rows of weight 0: NaN for the GEMMs of a careless one."""
    problem = linear_problem(replace(EVERYTHING, ratio=ratio, is_mode=None))
    rows = torch.arange(TOKENS, device=DEVICE)[ROWS[which]]
    want, got = call(only_rows(problem, rows), "reference"), call(problem, impl, rows=rows, chunk_tokens=5)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=2e-5, atol=2e-6, equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["loss", "logprobs"])
def test_a_float32_head(op: str, dtype: torch.dtype, impl: str) -> None:
    """Logits that were never rounded: log-probs as exact as those of float32 inputs."""
    problem = linear_problem(EVERYTHING, dtype)
    wide = replace(problem, leaves={name: x.float() for name, x in problem.leaves.items()})
    if op == "loss":
        exact, same = eager_loss(wide.double), eager_loss(wide)
        got = loss_results(problem, impl, logits_dtype="float32", chunk_tokens=7)
        assert {got[f"gradient by {name}"].dtype for name in problem.leaves} == {dtype}
    else:
        targets = problem.beside["targets"].clamp(min=0)
        problem, wide = problem.tidy(), wide.tidy()
        got = logprobs_results(problem.leaves, targets, impl, logits_dtype="float32", chunk_tokens=7)
        exact, same = (eager_logprobs(p.leaves, targets) for p in (wide.double, wide))
    same = {name: x.to(got[name].dtype) for name, x in same.items()}
    check(got, same, exact, {"loss": loss_magnitude(problem, exact)} if op == "loss" else {}, None)


# ---- masks and groups ----


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("spec", SPECS, ids=["plain", "everything"])
def test_nothing_trained(make, spec: ck.LossSpec, impl: str) -> None:
    """NaN in each row of each argument."""
    problem = make(spec)
    nothing = {name: x * torch.nan if x.is_floating_point() else x for name, x in problem.beside.items()}
    nothing["weights"] = torch.zeros_like(problem.beside["weights"])
    rows = next(iter(problem.leaves))
    leaves = {**problem.leaves, rows: problem.leaves[rows] * torch.nan}
    found = call(replace(problem, leaves=leaves, beside=nothing), impl)
    assert found["loss"] == found["tokens"] == found["active_count"] == 0
    assert found["ratio_max"].isnan()
    for name in ("logprobs", "entropies", *problem.leaves):
        assert torch.equal(found[name], torch.zeros_like(found[name])), name


def test_every_row_trained_and_negative_weights(impl: str) -> None:
    """A weight may have any sign: only 0 means that a row isn't trained."""
    problem = logits_problem(untrained=0.0)
    check_loss(problem, impl)
    weights = problem.beside["weights"] * (1 - 2 * (torch.arange(TOKENS, device=DEVICE) % 2))
    check_loss(replace(problem, beside={**problem.beside, "weights": weights}), impl)


def test_advantages_of_0_move_nothing(impl: str) -> None:
    problem = logits_problem()
    advantages = torch.zeros_like(problem.beside["advantages"])
    found = call(replace(problem, beside={**problem.beside, "advantages": advantages}), impl)
    assert found["loss"] == found["active_count"] == 0
    assert found["logits"].abs().max() == 0


def credit_for(problem: Problem, outcomes: list[float], groups: list[int], seed: int = 0, **options) -> ck.Credit:
    """Random steps and votes; the first tokens of some sequences belong to no step."""
    g = torch.Generator().manual_seed(seed)
    starts = torch.rand(len(problem.trained_T), generator=g) < 0.3
    wrong = (torch.rand(int(starts.sum()), generator=g) < 0.4).float()
    outcome, group = torch.tensor(outcomes), torch.tensor(groups)
    tensors = [x.to(DEVICE) for x in (starts, wrong, outcome, group)]
    return ck.Credit(*tensors, problem.beside["cu_seqlens"], **options)


def with_credit(problem: Problem, credit: ck.Credit) -> Problem:
    beside = {name: x for name, x in problem.beside.items() if name != "advantages"}
    return replace(problem, beside={**beside, "credit": credit})


def exact_advantages(credit: ck.Credit, trained_T: torch.Tensor) -> torch.Tensor:
    """float64 [T], from the same statistics: A = (C outcome - shift) scale + (-P wrong - shift) scale."""
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
    """Two groups, one of them of one sequence; the empty sequence belongs to the first."""
    plain = make(ck.LossSpec(kl_coef=0.1, entropy_coef=0.1), seed=3)
    problem = with_credit(plain, credit_for(plain, [1.0, 0.0, 1.0, 0.0], [5, 2, 5, 5], norm=norm))
    advantages = exact_advantages(problem.beside["credit"], plain.trained_T)
    truth = replace(plain.double, beside={**plain.double.beside, "advantages": advantages})
    exact, same, got = eager_loss(truth), eager_loss(problem), loss_results(problem, impl)
    assert exact["loss"].abs() > 1e-3
    check(got, same, exact, {"loss": loss_magnitude(truth, exact)}, plain.dtype if plain.linear else None)


@pytest.mark.parametrize("norm", NORMS[:3])
def test_one_group_of_equals_teaches_nothing(norm: str, impl: str) -> None:
    """All outcomes the same and no step wrong: no spread, advantage 0 and not 0 / 0."""
    plain = logits_problem()
    credit = credit_for(plain, [1.0] * 4, [0] * 4, norm=norm)
    credit = replace(credit, step_wrong=torch.zeros_like(credit.step_wrong))
    found = call(with_credit(plain, credit), impl)
    assert found["loss"] == found["active_count"] == 0
    assert found["logits"].abs().max() == 0


def part(problem: Problem, first: int, last: int) -> Problem:
    """The sequences [first, last) as a call of their own."""
    ends = problem.beside["cu_seqlens"].tolist()
    cut = slice(ends[first], ends[last])
    beside = {name: x[cut] for name, x in problem.beside.items() if name not in ("cu_seqlens", "credit")}
    beside["cu_seqlens"] = problem.beside["cu_seqlens"][first : last + 1] - ends[first]
    if "credit" in problem.beside:
        whole = problem.beside["credit"]
        before = int(whole.step_starts[: ends[first]].sum())
        steps = slice(before, before + int(whole.step_starts[cut].sum()))
        rows = (whole.outcome[first:last], whole.group[first:last], beside["cu_seqlens"])
        stats = ck.credit_stats(whole, problem.trained_T)
        beside["credit"] = replace(
            ck.Credit(whole.step_starts[cut], whole.step_wrong[steps], *rows, stats=stats), norm=whole.norm
        )
    name = next(iter(problem.leaves))
    return replace(problem, leaves={**problem.leaves, name: problem.leaves[name][cut]}, beside=beside)


@given(st.sampled_from(NORMS), st.sampled_from(PROBLEMS), st.sampled_from(["token", "sequence"]), st.integers(1, 3))
@settings(max_examples=8 if INTERPRETED else 25, deadline=None, derandomize=True)
def test_a_group_split_over_calls(impl: str, norm, make, ratio, cut) -> None:
    """With the whole group's statistics and the whole batch's weights the parts make the whole, metrics included."""
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
def test_a_target_that_is_no_word(target: int, impl: str) -> None:
    """NaN in its row, nothing read out of bounds; `reference` raises, and with CAPO_DEBUG=1 so does every call."""
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


# ---- gradients ----


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype, make, impl: str) -> None:
    problem = make(EVERYTHING, dtype)
    first = call(problem, impl)
    for _ in range(3):
        same_in_every_bit(call(problem, impl), first)


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd_the_figures_are_the_same(mode, make, impl: str) -> None:
    problem = make(EVERYTHING)
    want = call(problem, impl)
    with mode():
        result = problem.call(impl)
    assert not result.loss.requires_grad
    for name, value in figures(result).items():
        torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)


def test_log_probs_without_autograd(impl: str) -> None:
    logits = logits_problem().leaves["logits"].nan_to_num(0.0)
    targets = torch.zeros(TOKENS, dtype=torch.int64, device=DEVICE)
    want = ck.token_logprobs(logits.clone().requires_grad_(), targets, entropy=True, impl=impl)
    assert all(x.requires_grad for x in want)
    with torch.inference_mode():
        got = ck.token_logprobs(logits, targets, entropy=True, impl=impl)
    assert not any(x.requires_grad for x in got)
    assert all(map(torch.equal, got, want))


def test_only_what_was_differentiated_gets_a_gradient(impl: str) -> None:
    problem = logits_problem(replace(EVERYTHING, is_mode="truncate"))
    beside = {k: x.clone().requires_grad_() if x.is_floating_point() else x for k, x in problem.beside.items()}
    logits = problem.leaves["logits"].clone().requires_grad_()
    result = replace(problem, beside=beside).call(impl, {"logits": logits})
    result.loss.backward()
    assert torch.equal(logits.grad, call(problem, impl)["logits"])
    assert all(x.grad is None for x in beside.values())
    outputs = (result.logprobs, result.entropy, *result.metrics.values())
    assert not any(x.requires_grad for x in outputs)
    assert all(x.dim() == 0 and x.device.type == DEVICE.type for x in result.metrics.values())


FROZEN = ["hidden", "weight", "bias", "weight bias", "hidden weight bias"]


@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_unchanged(frozen: str, impl: str) -> None:
    problem = linear_problem(EVERYTHING)
    want = call(problem, impl, chunk_tokens=7)
    leaves = {name: x.clone().requires_grad_(name not in frozen.split()) for name, x in problem.leaves.items()}
    result = problem.call(impl, leaves, chunk_tokens=7)
    assert torch.equal(result.loss, want["loss"])
    if any(x.requires_grad for x in leaves.values()):
        result.loss.backward()
    for name, x in leaves.items():
        assert x.grad is None if name in frozen.split() else torch.equal(x.grad, want[name])


@pytest.mark.parametrize("frozen", FROZEN[:-1])
def test_log_probs_of_a_frozen_part(frozen: str, impl: str) -> None:
    problem = linear_problem().tidy()
    targets = problem.beside["targets"].clamp(min=0)
    grads = []
    for keep in ("", frozen):
        leaves = {name: x.clone().requires_grad_(name not in keep.split()) for name, x in problem.leaves.items()}
        ck.linear_token_logprobs(**leaves, targets=targets, chunk_tokens=7, impl=impl).sum().backward()
        grads.append({name: x.grad for name, x in leaves.items()})
    for name, want in grads[0].items():
        assert grads[1][name] is None if name in frozen.split() else torch.equal(grads[1][name], want)


@pytest.mark.parametrize("make", PROBLEMS)
def test_double_backward_is_refused_and_not_wrong(make, impl: str) -> None:
    if impl == "reference" and make is logits_problem:
        pytest.skip("eager code, which torch differentiates twice")
    problem = make(EVERYTHING)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    with pytest.raises(RuntimeError, match="once_differentiable" if impl == "reference" else "create_graph: got True"):
        grads = torch.autograd.grad(problem.call(impl, leaves).loss, list(leaves.values()), create_graph=True)
        sum(x.sum() for x in grads).backward()


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_second_backward_gives_the_same_gradient(dtype: torch.dtype, make, impl: str) -> None:
    problem = make(EVERYTHING, dtype)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    loss = problem.call(impl, leaves).loss
    first = torch.autograd.grad(3 * loss, list(leaves.values()), retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(3 * loss, list(leaves.values()), retain_graph=True)
    third = torch.autograd.grad(loss, list(leaves.values()))
    assert all(map(torch.equal, first, kept))
    assert all(map(torch.equal, second, kept))
    for x, y in zip(third, kept, strict=True):
        assert (3 * x.double() - y).norm() <= 2 * TINY[dtype] * y.double().norm()


@pytest.mark.parametrize("which", ["logprobs", "entropy"])
@pytest.mark.parametrize("make", PROBLEMS)
def test_a_gradient_by_one_of_the_two_outputs(make, which: str, impl: str) -> None:
    """Also where its derivative is 0 in some rows: those get exactly 0."""
    problem = make().tidy()
    targets = problem.beside["targets"].clamp(min=0)
    some = (torch.arange(TOKENS, device=DEVICE) % 3 > 0).float()
    outer = {"logprobs": some, "entropy": None} if which == "logprobs" else {"logprobs": None, "entropy": some}
    got = check_logprobs(problem.leaves, targets, impl, outer=outer)
    rows = next(iter(problem.leaves))
    assert got[f"gradient by {rows}"][some == 0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype, impl: str) -> None:
    problem = linear_problem(EVERYTHING)
    want = call(problem, impl)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    with torch.autocast(DEVICE.type, dtype=dtype):
        result = problem.call(impl, leaves)
    result.loss.backward()
    same_in_every_bit({**figures(result), **{name: x.grad for name, x in leaves.items()}}, want)


# ---- what a call may hold and read ----


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_never_more_than_a_chunk_of_logits(impl: str) -> None:
    problem = linear_problem(EVERYTHING, lengths=(60,), hidden=2, vocab=300)
    leaves = {name: x.nan_to_num(0.0).requires_grad_() for name, x in problem.leaves.items()}
    targets = problem.beside["targets"].clamp(min=0)
    with Largest() as largest:
        ck.linear_token_logprobs(**leaves, targets=targets, entropy=True, chunk_tokens=7, impl=impl)[0].sum().backward()
        problem.call(impl, leaves, chunk_tokens=7).loss.backward()
    assert largest.elements <= 7 * 300


@pytest.mark.parametrize("norm", NORMS)
def test_the_host_never_reads_a_tensor(norm: str, impl: str) -> None:
    """Fake tensors have no values: a hidden `.item()`, `nonzero` or `if tensor` would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits, targets = torch.empty(8, 5, device=DEVICE), torch.empty(8, dtype=torch.int64, device=DEVICE)
        weights, old, ref, rollout = torch.empty(4, 8, device=DEVICE).unbind()
        steps = torch.empty(8, dtype=torch.bool, device=DEVICE)
        cu = torch.empty(4, dtype=torch.int32, device=DEVICE)
        wrong, outcome = torch.empty(4, device=DEVICE), torch.empty(3, device=DEVICE)
        credit = ck.Credit(steps, wrong, outcome, torch.empty(3, dtype=torch.int64, device=DEVICE), cu, norm=norm)
        beside = {"old_logprobs": old, "ref_logprobs": ref, "rollout_logprobs": rollout, "cu_seqlens": cu}
        options = {"weights": weights, "credit": credit, "spec": EVERYTHING, "impl": impl, **beside}
        ck.policy_loss(logits.requires_grad_(), targets, **options).loss.backward()
        ck.token_weights(cu, steps, "sequence-mean")
        with pytest.raises(DataDependentOutputException):
            weights.sum().item()


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_host_never_waits_for_the_device(make, impl: str) -> None:
    if DEVICE.type != "cuda":
        pytest.skip("torch sees waits on CUDA alone")
    problem = make(EVERYTHING)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    problem.call(impl, leaves)  # compiles and loads what there is to
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.call(impl, leaves).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
