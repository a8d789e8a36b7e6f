"""Our module against Liger's, on the same tensors."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from covering import covering
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

import capo_kernels as ck
from capo_kernels.adapters.liger import CapoFusedLinearGRPOLoss

SEQUENCES, TOKENS, HIDDEN, VOCAB = 4, 6, 8, 40
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo")
LEVELS = [(loss_type, level) for loss_type in LOSS_TYPES for level in ("token", "sequence")]
TOLERANCE = 1e-5
# TorchDynamo is irrelevant here, and slow.
EAGER = {"compiled": False, "max_completion_length": 7, "epsilon_high": 0.3, "temperature": 0.8}


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Some ratios clip on either side and by delta; ids outside the mask are arbitrary."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    hidden, weight, bias = normal(SEQUENCES, TOKENS, HIDDEN), normal(VOCAB, HIDDEN), normal(VOCAB)
    ids = torch.randint(VOCAB, (SEQUENCES, TOKENS), generator=g)
    mask = (torch.arange(TOKENS) < torch.tensor([6, 2, 4, 5])[:, None]).long()
    logits = torch.nn.functional.linear(hidden, weight, bias) / EAGER["temperature"]
    logp = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    shift = torch.tensor([-0.5, 0.4, -0.8, 0.3])[:, None]
    return {
        "_input": hidden,
        "lin_weight": weight,
        "bias": bias,
        "selected_token_ids": ids,
        "attention_mask": mask,
        "advantages": torch.tensor([1.0, -0.7, -1.2, 0.4]),
        "old_per_token_logps": logp + shift + 0.3 * normal(SEQUENCES, TOKENS),
        "ref_per_token_logps": logp + 0.4 * normal(SEQUENCES, TOKENS),
    }


def run(module: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, gradients by hidden states, weight and bias, and metrics. The loss is scaled by 3 before the backward."""
    leaves = {name: batch[name].clone().requires_grad_() for name in ("_input", "lin_weight", "bias")}
    loss, metrics = module(**{**batch, **leaves})
    (3 * loss).backward()
    grad = torch.cat([leaf.grad.flatten() for leaf in leaves.values()])
    return loss.detach(), grad, torch.stack([metric.float() for metric in metrics])


def assert_same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    assert theirs[1].norm() > 1e-3
    assert (ours[0] - theirs[0]).abs() < TOLERANCE * max(1, theirs[0].abs())
    assert (ours[1] - theirs[1]).norm() < TOLERANCE * theirs[1].norm()
    assert ours[2].tolist() == pytest.approx(theirs[2].tolist(), abs=TOLERANCE)


def both(batch: dict[str, Any], **settings: Any) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    kinds = (CapoFusedLinearGRPOLoss, LigerFusedLinearGRPOLoss)
    ours, theirs = (run(kind(**EAGER | settings), batch) for kind in kinds)
    return ours, theirs


SETTINGS = covering(
    LOSS_TYPES,
    ("token", "sequence"),
    (0.0, 0.5),
    (None, 1.5),
    (False, True),
    allowed=lambda loss_type, level, *rest: (loss_type, level) != ("cispo", "sequence"),  # Liger refuses it
)


@pytest.mark.parametrize(("loss_type", "level", "beta", "delta", "corrected"), SETTINGS)
def test_loss_gradient_and_metrics_equal_ligers(loss_type, level, beta, delta, corrected) -> None:
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta, "delta": delta}
    if loss_type == "cispo":
        settings["epsilon_high"] = 1.5
    ours, theirs = both(make_batch(), **settings, use_bias_correction_kl=corrected)
    assert theirs[2][-1] > 0  # some tokens clip
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "change", ["no old", "reference from its head", "no reference", "vLLM", "vLLM [B, 1]", "items"]
)
def test_the_other_arguments(change: str) -> None:
    batch, settings = make_batch(), {"loss_type": "dapo", "beta": 0.5}
    if change == "no old":
        del batch["old_per_token_logps"]
    elif change == "reference from its head":
        del batch["ref_per_token_logps"]
        noise = 0.1 * make_batch(seed=1)["_input"]
        batch |= {"ref_input": batch["_input"] + noise, "ref_weight": batch["lin_weight"], "ref_bias": batch["bias"]}
    elif change == "no reference":
        settings["use_ref_model"] = False
    elif change == "vLLM":
        batch["vllm_is_ratio"] = torch.rand(SEQUENCES, TOKENS, generator=torch.Generator().manual_seed(2)) * 2
    elif change == "vLLM [B, 1]":
        batch["vllm_is_ratio"] = torch.tensor([[1.3], [0.0], [0.6], [2.1]])
    elif change == "items":
        batch["num_items_in_batch"] = 61
    assert_same(*both(batch, **settings))


@pytest.mark.parametrize(("loss_type", "level"), LEVELS)
def test_advantages_of_tokens_that_are_constant_over_a_sequence(loss_type: str, level: str) -> None:
    module = CapoFusedLinearGRPOLoss(**EAGER, loss_type=loss_type, importance_sampling_level=level, beta=0.5)
    batch = make_batch()
    spread = batch | {"advantages": batch["advantages"][:, None].expand(SEQUENCES, TOKENS)}
    for ours, theirs in zip(run(module, spread), run(module, batch), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_step_credit_against_the_definition_in_float64(level: str) -> None:
    batch = make_batch()
    batch["advantages"] = torch.randn(SEQUENCES, TOKENS, generator=torch.Generator().manual_seed(3))
    settings = EAGER | {"loss_type": "grpo", "importance_sampling_level": level, "beta": 0.0}
    loss, grad, _ = run(CapoFusedLinearGRPOLoss(**settings), batch)

    trained = batch["attention_mask"].bool()
    lengths = trained.sum(1)
    leaves = [batch[name].double().requires_grad_() for name in ("_input", "lin_weight", "bias")]
    definition = ck.policy_loss(
        torch.nn.functional.linear(*leaves)[trained],
        batch["selected_token_ids"][trained],
        weights=(1 / (SEQUENCES * lengths.double()))[:, None].expand(trained.shape)[trained],
        advantages=batch["advantages"][trained].double(),
        old_logprobs=batch["old_per_token_logps"][trained].double(),
        cu_seqlens=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        spec=ck.LossSpec(ratio=level, clip_high=EAGER["epsilon_high"], temperature=EAGER["temperature"]),
    )
    (3 * definition.loss).backward()
    wanted = torch.cat([leaf.grad.flatten() for leaf in leaves])
    assert abs(loss - definition.loss) < TOLERANCE
    assert (grad - wanted).norm() < TOLERANCE * wanted.norm()

    mean = (batch["advantages"] * trained).sum(1) / lengths
    _, of_mean, _ = run(CapoFusedLinearGRPOLoss(**settings), batch | {"advantages": mean})
    assert (of_mean - wanted).norm() > 0.1 * wanted.norm()


def test_entries_outside_the_mask_are_not_read() -> None:
    batch = make_batch()
    outside = batch["attention_mask"] == 0
    module = CapoFusedLinearGRPOLoss(**EAGER, beta=0.5, use_bias_correction_kl=True)
    clean = run(module, batch)
    for name, value in batch.items():
        if name not in ("lin_weight", "bias", "attention_mask", "advantages"):
            batch[name] = value.clone()
            batch[name][outside] = -100 if value.dtype == torch.int64 else torch.nan
    for ours, theirs in zip(run(module, batch), clean, strict=True):
        assert torch.equal(ours, theirs)


def test_a_batch_without_a_trained_token_gives_0() -> None:
    batch = make_batch() | {"attention_mask": torch.zeros(SEQUENCES, TOKENS)}
    for loss_type in LOSS_TYPES:
        outcome = run(CapoFusedLinearGRPOLoss(**EAGER, loss_type=loss_type), batch)
        assert all((x == 0).all() for x in outcome)


def test_bfloat16_and_a_head_in_float32() -> None:
    """Liger also casts the head to the dtype of the hidden states. Gradients have the dtypes of their inputs."""
    batch = make_batch()
    exact = run(CapoFusedLinearGRPOLoss(**EAGER, beta=0.5), batch)[1]
    batch["_input"] = batch["_input"].bfloat16()
    errors = [(grad - exact).norm() / exact.norm() for _, grad, _ in both(batch, beta=0.5)]
    assert errors[0] <= 2 * errors[1] + 2**-8


def test_the_arguments_equal_ligers() -> None:
    for method in ("__init__", "forward"):
        ours, theirs = (
            inspect.signature(getattr(kind, method)).parameters.values()
            for kind in (CapoFusedLinearGRPOLoss, LigerFusedLinearGRPOLoss)
        )
        assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("loss_type", {"loss_type": loss_type}) for loss_type in ("sapo", "luspo", "vespo", "else")),
        ("importance_sampling_level", {"importance_sampling_level": "step"}),
        ("delta", {"delta": 1.2}),
        ("max_completion_length", {"loss_type": "dr_grpo"}),
        *itertools.product(("sapo_temperature_pos", "sapo_temperature_neg"), [None]),
        *itertools.product(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), [None]),
    ],
)
def test_unsupported_arguments_are_refused_by_name(name: str, settings: dict[str, Any] | None) -> None:
    error = TypeError if name == "max_completion_length" else ValueError
    with pytest.raises(error, match=f"^{name}: got "):
        CapoFusedLinearGRPOLoss(**settings or {name: 1.5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_input", torch.zeros(4, 5, 8)),
        ("_input", torch.zeros(4, 8)),
        ("lin_weight", torch.zeros(40, 9)),
        ("bias", torch.zeros(39)),
        ("selected_token_ids", torch.zeros(4)),
        ("attention_mask", torch.ones(4, 5)),
        ("advantages", torch.zeros(4, 5)),
        ("advantages", 1.0),
        ("old_per_token_logps", torch.zeros(4, 5)),
        ("ref_per_token_logps", torch.zeros(4, 6).long()),
        ("vllm_is_ratio", torch.ones(5)),
    ],
)
def test_an_argument_of_another_shape_or_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: got .*, want "):
        CapoFusedLinearGRPOLoss()(**make_batch() | {name: value})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ref_per_token_logps", {}),
        ("ref_input", {"ref_input": torch.zeros(4, 5, 8), "ref_weight": torch.zeros(40, 8)}),
        ("ref_weight", {"ref_input": torch.zeros(4, 6, 8), "ref_weight": torch.zeros(40, 9)}),
    ],
)
def test_a_reference_that_is_missing_or_of_another_shape_is_refused_by_name(name: str, change: dict[str, Any]) -> None:
    batch = make_batch() | change
    del batch["ref_per_token_logps"]
    with pytest.raises(ValueError, match=rf"^{name}: got .*, want "):
        CapoFusedLinearGRPOLoss()(**batch)


def test_of_two_references_the_log_probs_are_used_with_ligers_warning() -> None:
    batch, messages = make_batch(), []
    both_given = batch | {"ref_input": batch["_input"] + 1, "ref_weight": batch["lin_weight"]}
    for kind in (CapoFusedLinearGRPOLoss, LigerFusedLinearGRPOLoss):
        expected = run(kind(**EAGER), batch)
        with pytest.warns(UserWarning, match="Using ref_per_token_logps") as warned:
            found = run(kind(**EAGER), both_given)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        messages.append(str(warned[0].message))
    assert messages[0] == messages[1]
