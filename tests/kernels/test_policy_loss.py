"""The loss on logits against the contract in Python floats, and its edge cases."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from covering import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import Case, oracle, oracle_gradient, random_case

import capo_kernels as ck

IS = [
    {},
    {"is_mode": "truncate", "is_high": 1.1},
    {"is_mode": "mask", "is_low": 0.8, "is_high": 1.3},
    {"is_mode": "mask", "is_low": 0.7, "is_high": None},
]
KL = [{}, *({"kl_coef": 0.7, "kl_estimator": k, "kl_ratio": r} for k in ("k1", "k2", "k3") for r in (False, True))]
LEVELS = ["token", "sequence"]
ESTIMATORS = [{}, *({"kl_coef": 0.7, "kl_estimator": k} for k in ("k1", "k2", "k3"))]
TERMS = covering(["ppo", "cispo", "reinforce"], LEVELS, ESTIMATORS, [False, True], IS, LEVELS)


def check_against_oracle(case: Case, spec: ck.LossSpec) -> None:
    result, grad = case.run(spec)
    want = oracle(case, spec)
    trained = [w != 0 for w in case.weights]
    assert result.loss.item() == pytest.approx(want["loss"], rel=1e-12, abs=1e-13)
    torch.testing.assert_close(grad, oracle_gradient(case, spec), rtol=1e-7, atol=1e-9)
    for got, values in ((result.logprobs, want["logp"]), (result.entropy, want["entropy"])):
        assert got.tolist() == pytest.approx([x if keep else 0.0 for x, keep in zip(values, trained, strict=True)])


@pytest.mark.parametrize(("seed", "terms"), enumerate(TERMS))
def test_value_and_gradient_equal_the_contract(seed: int, terms: tuple) -> None:
    objective, ratio, kl, kl_ratio, weighting, is_level = terms
    spec = ck.LossSpec(objective=objective, ratio=ratio, kl_ratio=kl_ratio, is_level=is_level, **kl, **weighting)
    check_against_oracle(random_case(seed), spec)


@pytest.mark.parametrize("head", [{"temperature": 0.7}, {"softcap": 2.5}, {"temperature": 1.6, "softcap": 3.0}])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.3, -0.1])
@pytest.mark.parametrize("dual_clip", [None, 1.25])
def test_temperature_softcap_entropy_and_dual_clip(head: dict, entropy_coef: float, dual_clip: float | None) -> None:
    spec = ck.LossSpec(entropy_coef=entropy_coef, dual_clip=dual_clip, kl_coef=0.1, **head)
    check_against_oracle(random_case(11), spec)


@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(lambda x: 0 < sum(x) < 9),
    vocab=st.integers(1, 6),
    objective=st.sampled_from(["ppo", "cispo", "reinforce"]),
    ratio=st.sampled_from(["token", "sequence"]),
    old=st.booleans(),
    options=st.sampled_from([a | b for a, b in itertools.product(KL, IS)]),
    is_level=st.sampled_from(LEVELS),
    entropy_coef=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_case(seed, lengths, vocab, objective, ratio, old, options, is_level, entropy_coef) -> None:
    case = random_case(seed, tuple(lengths), vocab)
    case = case if old else replace(case, old=None)
    fixed = {"objective": objective, "ratio": ratio, "is_level": is_level, "entropy_coef": entropy_coef}
    check_against_oracle(case, ck.LossSpec(**fixed, **options))


@pytest.mark.parametrize("kl", KL, ids=lambda kl: "-".join(map(str, kl.values())) or "no-kl")
@pytest.mark.parametrize(
    "fixed",
    [
        {"objective": "ppo"},
        {"objective": "ppo", "dual_clip": 1.3, "is_mode": "mask", "is_low": 0.5},
        {"objective": "reinforce", "softcap": 3.0, "entropy_coef": 0.1, "temperature": 0.8},
    ],
    ids=["ppo", "dual", "reinforce"],
)
def test_gradcheck_without_stop_gradients(fixed: dict, kl: dict) -> None:
    case = random_case(5, (3, 1))
    arguments, targets = case.arguments(), torch.tensor(case.targets)
    logits = torch.tensor(case.logits, dtype=torch.float64, requires_grad=True)
    spec = ck.LossSpec(**fixed, **kl)
    assert torch.autograd.gradcheck(lambda x: ck.policy_loss(x, targets, spec=spec, **arguments).loss, logits)


def test_the_oracle_cases_do_clip_and_mask() -> None:
    """The cases above need tokens that are clipped and masked."""
    result, _ = random_case(0, (40,)).run(ck.LossSpec(is_mode="mask", is_low=0.8, is_high=1.3))
    assert 0.1 < result.metrics["clip_low_frac"] < 0.9
    assert 0.1 < result.metrics["clip_high_frac"] < 0.9
    assert 0.1 < result.metrics["active_frac"] < 0.9


# ---- hand-worked numbers ----


def two_words(logp: list[float]) -> torch.Tensor:
    """Logits over two words; word 0 has these log-probs."""
    p = torch.tensor(logp, dtype=torch.float64).exp()
    return torch.stack([p, 1 - p], -1).log()


def test_ppo_by_hand() -> None:
    """rho 2 with A = 1 is clipped at 1.2; rho 0.5 with A = 1 is not; rho 0.5 with A = -1 is clipped at 0.8."""
    logits = two_words([math.log(0.5), math.log(0.25), math.log(0.25)]).requires_grad_()
    old = torch.log(torch.tensor([0.25, 0.5, 0.5], dtype=torch.float64))
    result = ck.policy_loss(
        logits,
        torch.zeros(3, dtype=torch.int64),
        weights=torch.ones(3, dtype=torch.float64),
        advantages=torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64),
        old_logprobs=old,
    )
    assert result.loss.item() == pytest.approx(-1.2 - 0.5 + 0.8)
    result.loss.backward()
    # d(-rho A)/dlogits of row 1 = -0.5 * (onehot - p) with p = (0.25, 0.75); the other two rows are clipped.
    assert logits.grad.tolist() == [[0, 0], pytest.approx([-0.375, 0.375]), [0, 0]]
    assert result.metrics["active_frac"].item() == pytest.approx(1 / 3)
    assert result.metrics["clip_high_frac"].item() == pytest.approx(1 / 3)
    assert result.metrics["clip_low_frac"].item() == pytest.approx(1 / 3)


def test_dual_clip_bounds_a_bad_token() -> None:
    """rho = 8, A = -1: the loss is 8. With dual_clip = 3 it is 3 and has no gradient."""
    logits = two_words([math.log(0.8)]).requires_grad_()
    arguments = {"weights": torch.ones(1, dtype=torch.float64), "advantages": -torch.ones(1, dtype=torch.float64)}
    old = torch.tensor([math.log(0.1)], dtype=torch.float64)
    for dual_clip, want in ((None, 8.0), (3.0, 3.0)):
        spec = ck.LossSpec(dual_clip=dual_clip)
        result = ck.policy_loss(logits, torch.tensor([0]), old_logprobs=old, spec=spec, **arguments)
        assert result.loss.item() == pytest.approx(want)
        assert result.metrics["active_count"] == (dual_clip is None)


def test_cispo_cap_may_be_below_one() -> None:
    """clip_high = -0.9: cap 0.1; loss = -0.1 A logp."""
    logits = two_words([math.log(0.5)])
    one = torch.ones(1, dtype=torch.float64)
    spec = ck.LossSpec(objective="cispo", clip_high=-0.9)
    result = ck.policy_loss(logits, torch.tensor([0]), weights=one, advantages=one, spec=spec)
    assert result.loss.item() == pytest.approx(0.1 * math.log(2))


@pytest.mark.parametrize("far", [-50.0, 50.0])
def test_a_sequence_s_mean_and_its_sum_are_clamped(far: float) -> None:
    """Ratio: the mean of (3 far, -far) is far, beyond 20. Importance weight: 15 per token, the sum 30."""
    case = replace(random_case(2, (2,)), weights=[1.0, 1.0])
    near = oracle(case, ck.LossSpec())["logp"]
    fifteen = math.copysign(15, far)
    case = replace(case, old=[near[0] - 3 * far, near[1] + far])
    case = replace(case, rollout=[x - fifteen for x in case.old])
    spec = ck.LossSpec(ratio="sequence", is_mode="truncate", is_level="sequence", is_high=None)
    metrics = case.run(spec)[0].metrics
    limit = math.exp(math.copysign(20, far))
    assert [metrics[k].item() for k in ("ratio_min", "ratio_max", "is_weight_mean")] == pytest.approx([limit] * 3)


def test_every_objective_is_homogeneous_in_the_advantage() -> None:
    """Therefore a precomputed importance ratio may be multiplied into the advantages."""
    case = random_case(3)
    for objective in ("ppo", "cispo", "reinforce"):
        spec = ck.LossSpec(objective=objective)
        once, thrice = case.run(spec), replace(case, advantages=[3 * a for a in case.advantages]).run(spec)
        torch.testing.assert_close(3 * once[1], thrice[1])
        torch.testing.assert_close(3 * once[0].loss, thrice[0].loss)


# ---- metrics ----


def test_metrics_against_the_oracle() -> None:
    case = random_case(4, (9, 6))
    spec = ck.LossSpec(clip_low=0.1, clip_high=0.15, kl_coef=0.1, is_mode="truncate", is_high=1.2)
    metrics = {key: value.item() for key, value in case.run(spec)[0].metrics.items()}
    want = oracle(case, spec)
    tokens, n = want["tokens"], len(want["tokens"])
    rho, w = [x["rho"] for x in tokens], [x["w"] for x in tokens]
    assert metrics["tokens"] == n < 15
    assert metrics["ratio_mean"] == pytest.approx(sum(rho) / n)
    assert metrics["ratio_min"] == pytest.approx(min(rho))
    assert metrics["ratio_max"] == pytest.approx(max(rho))
    signs = [case.advantages[x["t"]] > 0 for x in tokens]
    assert metrics["clip_low_frac"] == pytest.approx(
        sum(r < 0.9 and not s for r, s in zip(rho, signs, strict=True)) / n
    )
    assert metrics["clip_high_frac"] == pytest.approx(sum(r > 1.15 and s for r, s in zip(rho, signs, strict=True)) / n)
    assert metrics["approx_kl"] == pytest.approx(sum(math.exp(x["d"]) - x["d"] - 1 for x in tokens) / n)
    assert metrics["ref_kl"] == pytest.approx(sum(x["kl"] for x in tokens) / n)
    assert metrics["entropy"] == pytest.approx(sum(want["entropy"][x["t"]] for x in tokens) / n)
    assert metrics["is_weight_mean"] == pytest.approx(sum(w) / n)
    assert metrics["is_weight_max"] == pytest.approx(max(w))
    assert metrics["ess"] == pytest.approx(sum(w) ** 2 / (n * sum(x * x for x in w)))


def test_active_counts_rows_with_a_gradient() -> None:
    for seed in range(5):
        for spec in (ck.LossSpec(clip_low=0.05, clip_high=0.05), ck.LossSpec(is_mode="mask", is_low=0.9, is_high=1.1)):
            result, grad = random_case(seed).run(spec)
            assert result.metrics["active_count"].item() == (grad.abs().amax(-1) > 0).sum().item()


CONTRACT_KEYS = {"ratio_mean", "ratio_min", "ratio_max", "clip_low_frac", "clip_high_frac", "approx_kl", "ref_kl"}
CONTRACT_KEYS |= {"entropy", "is_weight_mean", "is_weight_max", "ess", "active_frac"}


def test_metric_keys_never_change_and_unused_ones_are_nan() -> None:
    case = replace(random_case(0), ref=None, rollout=None)
    bare = case.run(ck.LossSpec())[0].metrics
    full = random_case(0).run(ck.LossSpec(kl_coef=0.1, is_mode="mask"))[0].metrics
    assert list(bare) == list(full)
    assert set(bare) >= CONTRACT_KEYS
    unused = {key for key, value in bare.items() if value.isnan()}
    assert unused == {"ref_kl", "ref_kl_sum", "ess"} | {key for key in bare if key.startswith("is_weight")}
    assert not any(value.isnan() for value in full.values())
    assert all(value.dim() == 0 and not value.requires_grad for value in full.values())


def part(case: Case, start: int, end: int) -> Case:
    def cut(x):
        return None if x is None else x[start:end]

    cu = [c - start for c in case.cu if start <= c <= end]
    columns = (case.logits, case.targets, case.weights, case.advantages, case.old, case.ref, case.rollout)
    return Case(*(cut(x) for x in columns), cu)


def test_metrics_of_parts_combine_to_those_of_the_whole() -> None:
    case = random_case(6, (4, 3, 5))
    untrained = replace(random_case(7, (2,)), weights=[0.0, 0.0])
    spec = ck.LossSpec(kl_coef=0.1, is_mode="truncate", ratio="sequence")
    whole = case.run(spec)[0].metrics
    parts = [p.run(spec)[0].metrics for p in (part(case, 0, 4), untrained, part(case, 4, 12))]
    together = ck.combine_metrics(parts)
    assert together.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(together[key], value, msg=key)
    with pytest.raises(ValueError, match="parts"):
        ck.combine_metrics([])


def test_a_ratio_of_nan_in_one_part_is_in_the_extremes_of_the_whole() -> None:
    case = random_case(6, (4, 3))
    broken = replace(case, old=[float("nan"), *case.old[1:]])
    parts = [part(each, *ends).run(ck.LossSpec())[0].metrics for each, ends in ((broken, (0, 4)), (case, (4, 7)))]
    together = ck.combine_metrics(parts)
    assert all(together[key].isnan() for key in ("ratio_mean", "ratio_min", "ratio_max"))


# ---- rows, edges, dtypes ----


def test_micro_batches_with_an_explicit_denominator_add_up() -> None:
    case, spec = random_case(8, (5, 2, 4)), ck.LossSpec(ratio="sequence", kl_coef=0.2, entropy_coef=0.1)
    mask = torch.tensor(case.weights) != 0
    for mode, denominator in (("sequence-mean", 3), ("token-mean", int(mask.sum())), ("constant", 40.0)):
        cu = torch.tensor(case.cu, dtype=torch.int32)
        weights = ck.token_weights(cu, mask, mode, denominator).tolist()
        loss, grad = replace(case, weights=weights).run(spec)
        total, grads = 0.0, []
        for start, end in ((0, 5), (5, 11)):
            piece = part(case, start, end)
            own = ck.token_weights(torch.tensor(piece.cu, dtype=torch.int32), mask[start:end], mode, denominator)
            result, piece_grad = replace(piece, weights=own.tolist()).run(spec)
            total, grads = total + result.loss.item(), [*grads, piece_grad]
        assert total == pytest.approx(loss.loss.item(), rel=1e-12)
        torch.testing.assert_close(torch.cat(grads), grad, rtol=1e-12, atol=0)


def test_one_token() -> None:
    check_against_oracle(replace(random_case(14, (1,)), weights=[0.3]), ck.LossSpec(ratio="sequence", kl_coef=0.1))
