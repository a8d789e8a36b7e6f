"""Every bad argument is refused by name, with the value found and the value wanted."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import capo_kernels as ck
from capo_kernels.checks import reads_values

SPEC = ck.LossSpec()
META = torch.device("meta")
INT = torch.zeros(4, dtype=torch.int64)
CU = torch.tensor([0, 2, 4], dtype=torch.int32)


def credit(**changes) -> ck.Credit:
    fields = {
        "step_starts": torch.tensor([True, False, True, True]),
        "step_wrong": torch.tensor([0.0, 1.0, 0.0]),
        "outcome": torch.tensor([1.0, 0.0]),
        "group": torch.tensor([0, 0]),
        "cu_seqlens": CU,
    }
    return ck.Credit(**{**fields, **changes})


def loss(**changes) -> ck.PolicyLoss:
    arguments = {"weights": torch.ones(4), "advantages": torch.ones(4), "spec": ck.LossSpec(), **changes}
    return ck.policy_loss(arguments.pop("logits", torch.zeros(4, 5)), arguments.pop("targets", INT), **arguments)


def linear(**changes) -> ck.PolicyLoss:
    arguments = {"weights": torch.ones(4), "advantages": torch.ones(4), **changes}
    positional = [
        arguments.pop(k, v) for k, v in (("hidden", torch.zeros(4, 3)), ("weight", torch.zeros(5, 3)), ("targets", INT))
    ]
    return ck.linear_policy_loss(*positional, **arguments)


def test_the_unchanged_calls_are_valid() -> None:
    """The baseline of the refusals below: without changes the calls succeed."""
    loss(), linear(), credit(), loss(credit=credit(), advantages=None), linear(bias=torch.zeros(5))


FLOAT_T = ("weights", "advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs")


@pytest.mark.parametrize("call", [loss, linear])
@pytest.mark.parametrize("name", FLOAT_T)
@pytest.mark.parametrize(
    ("value", "error", "found", "wanted"),
    [
        ([1.0] * 4, TypeError, "list", "a tensor"),
        (torch.ones(4, dtype=torch.bfloat16), TypeError, "bfloat16", "float32"),
        (torch.ones(4, dtype=torch.float64), TypeError, "float64", "float32"),
        (torch.ones(3), ValueError, r"shape \[3\]", r"\[T = 4\]"),
        (torch.ones(4, 1), ValueError, r"shape \[4, 1\]", r"\[T = 4\]"),
        (torch.ones(4, device=META), ValueError, "device meta", "cpu"),
    ],
    ids=["type", "bf16", "f64", "length", "dims", "device"],
)
def test_per_token_floats(call, name: str, value, error, found: str, wanted: str) -> None:
    with pytest.raises(error, match=f"^{name}: got {found}, want .*{wanted}"):
        call(**{name: value})


BAD_CALLS = [
    (loss, {"logits": torch.zeros(4)}, ValueError, r"logits: got shape \[4\], want \[T, V\]$"),
    (loss, {"logits": torch.zeros(2, 2, 5)}, ValueError, r"want \[T, V\]; flatten\(0, 1\)$"),
    (loss, {"logits": torch.zeros(4, 0)}, ValueError, r"logits: got shape \[4, 0\], want V >= 1"),
    (loss, {"logits": torch.zeros(4, 5).long()}, TypeError, "logits: got int64, want bfloat16 or"),
    (loss, {"targets": torch.zeros(4)}, TypeError, "targets: got float32, want int32 or int64"),
    (loss, {"targets": INT[:3]}, ValueError, r"targets: got shape \[3\], want \[T = 4\]"),
    (loss, {"advantages": None}, ValueError, "advantages, credit: got neither, want exactly one"),
    (loss, {"credit": credit()}, ValueError, "advantages, credit: got both, want exactly one"),
    (loss, {"advantages": None, "credit": {}}, TypeError, "credit: got dict, want Credit"),
    (loss, {"spec": {}}, TypeError, "spec: got dict, want LossSpec"),
    (loss, {"spec": ck.LossSpec(kl_coef=0.1)}, ValueError, "ref_logprobs: got None with kl_coef=0.1, want a float"),
    (loss, {"spec": ck.LossSpec(is_mode="mask")}, ValueError, "rollout_logprobs: got None with is_mode='mask', want"),
    (loss, {"spec": ck.LossSpec(ratio="sequence")}, ValueError, "cu_seqlens: got None with ratio='sequence', want"),
    (
        loss,
        {"spec": ck.LossSpec(is_mode="mask", is_level="sequence"), "rollout_logprobs": torch.ones(4)},
        ValueError,
        "cu_seqlens: got None with is_level='sequence', want",
    ),
    (loss, {"cu_seqlens": CU.long()}, TypeError, "cu_seqlens: got int64, want int32"),
    (loss, {"cu_seqlens": CU[None]}, ValueError, r"cu_seqlens: got shape \[1, 3\], want \[B \+ 1\]"),
    (loss, {"cu_seqlens": CU[:0]}, ValueError, r"cu_seqlens: got shape \[0\], want \[B \+ 1\]"),
    (
        loss,
        {"cu_seqlens": CU[:2], "credit": credit(), "advantages": None},
        ValueError,
        r"cu_seqlens: got shape \[2\], want \[B \+ 1 = 3\]",
    ),
    (
        loss,
        {
            "credit": credit(step_starts=torch.ones(3).bool(), cu_seqlens=CU.clamp(max=3)),
            "advantages": None,
        },
        ValueError,
        r"credit.step_starts: got shape \[3\], want \[T = 4\]",
    ),
    (loss, {"inplace": 1}, TypeError, "inplace: got int, want True or False"),
    (loss, {"inplace": True, "logits": torch.zeros(5, 4).T}, ValueError, r"inplace: .* strides \(1, 4\), want contig"),
    (loss, {"impl": "fast"}, ValueError, "impl: got 'fast', want one of 'auto', 'reference', 'triton', 'cuda', 'cpu'"),
    (linear, {"hidden": torch.zeros(4)}, ValueError, r"hidden: got shape \[4\], want \[T, H\]"),
    (linear, {"hidden": torch.zeros(4, 3).int()}, TypeError, "hidden: got int32, want"),
    (linear, {"weight": torch.zeros(5, 2)}, ValueError, r"weight: got shape \[5, 2\], want \[V, H = 3\]"),
    (linear, {"weight": torch.zeros(0, 3)}, ValueError, r"weight: got shape \[0, 3\], want V >= 1"),
    (
        linear,
        {"weight": torch.zeros(5, 3).half()},
        TypeError,
        r"weight: got float16, want float32; pass weight.to\(hidden.d",
    ),
    (linear, {"bias": torch.zeros(4)}, ValueError, r"bias: got shape \[4\], want \[V = 5\]"),
    (linear, {"bias": torch.zeros(5).half()}, TypeError, "bias: got float16, want float32"),
    (linear, {"targets": INT[:1]}, ValueError, r"targets: got shape \[1\], want \[T = 4\]"),
    (linear, {"chunk_tokens": 0}, ValueError, "chunk_tokens: got 0, want an int >= 1"),
    (linear, {"logits_dtype": "float64"}, ValueError, "logits_dtype: got 'float64', want one of None, 'float32'"),
    (linear, {"rows": [0, 1]}, TypeError, "rows: got list, want a tensor"),
    (linear, {"rows": torch.zeros(2).int()}, TypeError, "rows: got int32, want int64"),
    (linear, {"rows": INT[None]}, ValueError, r"rows: got shape \[1, 4\], want \[R\]"),
    (linear, {"rows": torch.zeros(2, device=META).long()}, ValueError, "rows: got device meta, want cpu"),
    (linear, {"chunk_tokens": 2.5}, TypeError, "chunk_tokens: got float, want an int >= 1"),
    (credit, {"step_starts": torch.ones(4)}, TypeError, "step_starts: got float32, want bool"),
    (credit, {"step_starts": torch.ones(2, 2).bool()}, ValueError, r"step_starts: got shape \[2, 2\], want \[T\]"),
    (credit, {"step_wrong": torch.ones(3).int()}, TypeError, "step_wrong: got int32, want float32"),
    (credit, {"outcome": torch.ones(2).long()}, TypeError, "outcome: got int64, want float32"),
    (credit, {"outcome": torch.ones(2, device=META)}, ValueError, "outcome: got device meta, want cpu"),
    (credit, {"group": torch.ones(2)}, TypeError, "group: got float32, want int32 or int64"),
    (credit, {"group": INT}, ValueError, r"group: got shape \[4\], want \[B = 2\]"),
    (credit, {"cu_seqlens": CU[:2]}, ValueError, r"cu_seqlens: got shape \[2\], want \[B \+ 1 = 3\] \(offsets, not l"),
    (credit, {"cu_seqlens": [0, 2, 4]}, TypeError, "cu_seqlens: got list, want a tensor"),
    (credit, {"norm": "batch"}, ValueError, "norm: got 'batch', want one of 'group-token', "),
    (credit, {"std_floor": -0.1}, ValueError, "std_floor: got -0.1, want a finite number >= 0"),
    (credit, {"outcome_weight": math.nan}, ValueError, "outcome_weight: got nan, want a finite number >= 0"),
    (credit, {"process_weight": "1"}, TypeError, "process_weight: got str, want a finite number >= 0"),
    (credit, {"stats": torch.ones(2, 3)}, ValueError, r"stats: got shape \[2, 3\], want \[G, 4 = 4\]"),
    (credit, {"stats": torch.ones(2, 4).double()}, TypeError, "stats: got float64, want float32"),
]


@pytest.mark.parametrize(("call", "changes", "error", "message"), BAD_CALLS, ids=[case[3][:40] for case in BAD_CALLS])
def test_calls(call, changes: dict, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(**changes)


BAD_SPECS = [
    ({"objective": "grpo"}, ValueError, "objective: got 'grpo', want one of 'ppo', 'cispo', 'reinforce'"),
    ({"ratio": "group"}, ValueError, "ratio: got 'group'"),
    ({"kl_estimator": "k4"}, ValueError, "kl_estimator: got 'k4'"),
    ({"is_mode": "clip"}, ValueError, "is_mode: got 'clip', want one of None"),
    ({"is_level": None}, ValueError, "is_level: got None"),
    ({"clip_low": -0.1}, ValueError, "clip_low: got -0.1, want a finite number >= 0"),
    ({"clip_high": -0.1}, ValueError, "clip_high: got -0.1, want a finite number >= 0"),
    ({"objective": "cispo", "clip_high": -1.1}, ValueError, "clip_high: got -1.1, want a finite number >= -1"),
    ({"dual_clip": 1.2}, ValueError, "dual_clip: got 1.2, want a finite number > 1.2"),
    ({"dual_clip": 3, "objective": "cispo"}, ValueError, "dual_clip: got 3 with objective='cispo', want"),
    ({"kl_coef": -1}, ValueError, "kl_coef: got -1, want a finite number >= 0"),
    ({"kl_coef": True}, TypeError, "kl_coef: got bool, want"),
    ({"kl_ratio": 1}, TypeError, "kl_ratio: got int, want True or False"),
    ({"entropy_coef": math.inf}, ValueError, "entropy_coef: got inf, want a finite number"),
    ({"entropy_coef": torch.tensor(0.1)}, TypeError, "entropy_coef: got Tensor, want a finite number"),
    ({"temperature": 0.0}, ValueError, "temperature: got 0.0, want a finite number > 0"),
    ({"temperature": None}, TypeError, "temperature: got NoneType, want a finite number > 0"),
    ({"softcap": 0}, ValueError, "softcap: got 0, want a finite number > 0 or None"),
    ({"is_low": -1.0}, ValueError, "is_low: got -1.0, want a finite number >= 0"),
    ({"is_low": 3.0}, ValueError, "is_high: got 2.0, want a finite number >= 3 or None"),
]


@pytest.mark.parametrize(("fields", "error", "message"), BAD_SPECS, ids=[case[2][:30] for case in BAD_SPECS])
def test_specs(fields: dict, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ck.LossSpec(**fields)


LOGITS, WEIGHT, MASK = torch.zeros(4, 5), torch.zeros(5, 5), torch.ones(4).bool()
BAD_OTHERS = [
    (lambda: ck.token_logprobs(LOGITS, INT, temperature=-1.0), ValueError, "temperature: got -1.0, want"),
    (lambda: ck.token_logprobs(LOGITS, INT, entropy=1), TypeError, "entropy: got int, want True or False"),
    (lambda: ck.token_logprobs([[0.0]], INT), TypeError, "logits: got list, want a tensor"),
    (lambda: ck.linear_token_logprobs(LOGITS, WEIGHT, INT, temperature=0), ValueError, "temperature: got 0, want"),
    (lambda: ck.linear_token_logprobs(LOGITS, WEIGHT, INT, chunk_tokens=True), TypeError, "chunk_tokens: got bool"),
    (lambda: ck.credit_stats(credit(), MASK.float()), TypeError, "mask: got float32, want bool"),
    (lambda: ck.token_advantages(credit(), MASK[:3]), ValueError, r"mask: got shape \[3\], want \[T = 4\]"),
    (lambda: ck.token_advantages({}, MASK), TypeError, "credit: got dict, want Credit"),
    (lambda: ck.token_weights(CU, MASK.int(), "token-mean"), TypeError, "mask: got int32, want bool"),
    (lambda: ck.token_weights(CU.long(), MASK, "token-mean"), TypeError, "cu_seqlens: got int64, want int32"),
    (lambda: ck.token_weights(CU[:0], MASK, "token-mean"), ValueError, r"cu_seqlens: got shape \[0\], want \[B \+ 1\]"),
    (lambda: ck.token_weights(CU, MASK, "mean"), ValueError, "mode: got 'mean', want one of 'sequence-mean', "),
    (lambda: ck.token_weights(CU, MASK, "constant"), ValueError, "denominator: got None with mode='constant', want"),
    (lambda: ck.token_weights(CU, MASK, "constant", 0), ValueError, "denominator: got 0, want a finite number > 0"),
    (lambda: ck.token_weights(CU, MASK, "constant", torch.ones(1)), ValueError, r"denominator: got shape \[1\], want"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_OTHERS, ids=[case[2][:40] for case in BAD_OTHERS])
def test_other_calls(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


BAD_VALUES = [
    (lambda: loss(targets=INT + 5), "targets: got 5, want values in"),
    (lambda: linear(targets=INT - 1), "targets: got -1, want values in"),
    (lambda: linear(rows=INT + 4), "rows: got 4, want values in"),
    (lambda: linear(rows=INT), "rows: got indices that do not ascend, want each row once"),
    (lambda: ck.token_logprobs(LOGITS, INT - 100), r"targets: got -100, want values in \[0, 4\]; put any id in "),
    (
        lambda: loss(cu_seqlens=CU + 1),
        r"cu_seqlens: got \[1, 3, 5\], want non-decreasing offsets \(not lengths\) from 0 to T = 4",
    ),
    (lambda: loss(cu_seqlens=CU[[0, 2, 1, 2]]), r"cu_seqlens: got \[0, 4, 2, 4\], want"),
    (
        lambda: loss(cu_seqlens=CU[[0, 2, 2]], credit=credit(), advantages=None),
        "cu_seqlens: got offsets that differ from cr",
    ),
    (lambda: credit(step_wrong=torch.zeros(2)), r"step_wrong: got S = 2, want S = step_starts.sum\(\) = 3"),
    (lambda: credit(step_wrong=torch.tensor([0, 0, 1.5])), "step_wrong: got 1.5, want values in"),
    (lambda: credit(group=torch.tensor([0, -1])), "group: got -1, want values >= 0$"),
    (lambda: ck.credit_stats(credit(group=INT[:2] + 2**40), MASK), "group: got 1099511627776, want ids < 16777216; n"),
    (
        lambda: credit(group=torch.tensor([0, 1]), stats=torch.zeros(1, 4)),
        r"group: got 1, want values in \[0, 0\] \(stats has 1 row\)",
    ),
    (lambda: ck.token_weights(CU[:2], MASK, "token-mean"), r"cu_seqlens: got \[0, 2\], want"),
    (lambda: ck.token_weights(CU, MASK, "constant", torch.tensor(-2.0)), "denominator: got -2.0, want a finite number"),
]


@pytest.mark.parametrize(("call", "message"), BAD_VALUES, ids=[case[1][:40] for case in BAD_VALUES])
def test_values_on_a_cpu_are_read(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_unusual_but_valid_values_are_accepted() -> None:
    """Also any values in rows of weight 0."""
    loss(weights=torch.tensor([1.0, 0, 1, 0]), targets=torch.tensor([4, -100, 0, 99]), cu_seqlens=CU)
    credit(stats=torch.zeros(1, 4), step_wrong=torch.tensor([0.0, 1.0, math.nan]))
    ck.token_weights(CU, MASK, "constant", torch.tensor(2.0))


def test_values_on_a_device_are_read_with_capo_debug(monkeypatch) -> None:
    monkeypatch.delenv("CAPO_DEBUG", raising=False)
    assert not reads_values(torch.ones(1, device=META))
    monkeypatch.setenv("CAPO_DEBUG", "1")
    assert reads_values(torch.ones(1, device=META))


def loss_of_bad_values(wrong: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return loss(credit=credit(step_wrong=wrong), advantages=None, targets=targets, spec=SPEC).loss


def test_values_are_not_read_where_a_call_is_traced(monkeypatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert loss_of_bad_values(torch.zeros(2), torch.full((4,), -1)).shape == ()
    compiled = torch.compile(loss_of_bad_values, fullgraph=True, backend="eager")
    assert compiled(torch.full((3,), 7.0), torch.full((4,), 4)).isfinite()
