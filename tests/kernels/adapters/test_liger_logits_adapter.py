"""`triton_grpo_loss` against Liger's definition in float64, as Liger's own needs a GPU."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from covering import covering
from liger_kernel.transformers.grpo_loss import triton_grpo_loss as liger_grpo_loss
from torch import Tensor

from capo_kernels.adapters.liger import triton_grpo_loss

SEQUENCES, TOKENS, VOCAB = 4, 6, 40
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo")
TOLERANCE = 1e-5


def make_batch(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Some ratios clip on either side and by delta, of tokens and of sequences. upstream: the derivative of each
    token's loss, where the losses are not reduced."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    logits = normal(SEQUENCES, TOKENS + 1, VOCAB).to(dtype)
    ids = torch.randint(VOCAB, (SEQUENCES, TOKENS), generator=g)
    logp = (logits[:, :-1].float() / 0.8).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return {
        "logits": logits,
        "old_logp": logp + torch.tensor([-0.5, 0.4, -0.8, 0.3])[:, None] + 0.3 * normal(SEQUENCES, TOKENS),
        "ref_logp": logp + 0.4 * normal(SEQUENCES, TOKENS),
        "completion_ids": ids,
        "advantages": torch.tensor([1.0, -0.7, -1.2, 0.4]),
        "completion_mask": (torch.arange(TOKENS) < torch.tensor([6, 2, 4, 5])[:, None]).long(),
        "upstream": normal(SEQUENCES, TOKENS),
    }


def run(batch: dict[str, Any], **settings: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(loss, gradient by the logits, other results), for logits that are not a leaf."""
    arguments = {"temperature": 0.8, "eps_high": 0.3, "max_completion_length": 7} | settings
    leaf = batch["logits"].clone().requires_grad_()
    tensors = {name: x for name, x in batch.items() if name != "upstream"} | {"logits": leaf * 1}
    loss, *rest = triton_grpo_loss(**tensors, **arguments)
    (loss * (3 if arguments.get("reduce") else batch["upstream"])).sum().backward()
    return loss.detach(), leaf.grad, rest[0] if arguments.get("reduce") else rest


def definition(
    batch: dict[str, Any], loss_type: str, level: str, beta: float, delta: float | None, corrected: bool, reduce: bool
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Liger 0.8.5's ops/grpo_loss.py in float64."""
    leaf, mask = batch["logits"].double().requires_grad_(), batch["completion_mask"].double()
    advantage, lengths = batch["advantages"].double()[:, None], mask.sum(1, keepdim=True)
    logp = (leaf[:, :-1] / 0.8).log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    log_ratio = logp - (logp.detach() if batch["old_logp"] is None else batch["old_logp"])
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1, keepdim=True) / lengths).expand_as(mask)
    ratio = log_ratio.exp()
    if loss_type == "cispo":
        loss = -ratio.clamp(max=1.3).detach() * advantage * logp
        clipped = (ratio > 1.3) & (advantage > 0)
    else:
        first = (ratio if delta is None else ratio.clamp(max=delta)) * advantage
        loss = -torch.minimum(first, ratio.clamp(0.8, 1.3) * advantage)
        clipped = ((ratio < 0.8) & (advantage < 0)) | ((ratio > 1.3) & (advantage > 0))
    importance = batch.get("vllm_is_ratio")
    if importance is not None:
        loss = loss * importance.reshape(SEQUENCES, -1)
    gap = batch["ref_logp"] - logp
    kl = (gap.exp() - gap - 1) * (ratio if corrected else 1)
    loss = (loss + beta * kl) * mask
    kl, clipped = (None if beta == 0 else (kl * mask).detach()), clipped * mask
    if not reduce:
        (loss * batch["upstream"]).sum().backward()
        return loss.detach(), leaf.grad, [kl, clipped]
    divided = {"grpo": SEQUENCES * lengths, "dr_grpo": SEQUENCES * 7}.get(loss_type, mask.sum())
    total = (loss / divided).sum()
    (3 * total).backward()
    means = [x.sum() / mask.sum() for x in (kl, clipped) if x is not None]
    return total.detach(), leaf.grad, means


def assert_same(ours: tuple[Tensor, Tensor, list], exact: tuple[Tensor, Tensor, list]) -> None:
    assert exact[1].norm() > 1e-2
    for got, want in zip((*ours[:2], *ours[2]), (*exact[:2], *exact[2]), strict=True):
        if want is None:
            assert got is None
        else:
            assert got.shape == want.shape and (got - want).norm() < TOLERANCE * max(1, want.norm())


SETTINGS = covering(
    LOSS_TYPES,
    ("token", "sequence"),
    (0.0, 0.5),
    (None, 1.5),
    (False, True),
    (False, True),
    allowed=lambda loss_type, level, beta, delta, *rest: loss_type != "cispo" or delta is None,
)
NAMES = ("loss_type", "importance_sampling_level", "beta", "delta", "use_bias_correction_kl", "reduce")


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_results_and_gradient_equal_the_definition(setting: tuple[Any, ...]) -> None:
    settings = dict(zip(NAMES, setting, strict=True))
    if settings["loss_type"] == "cispo":
        settings["eps_high"] = 1.3
    exact = definition(make_batch(), *setting)
    assert exact[2][-1].sum() > 0  # some tokens clip
    assert_same(run(make_batch(), **settings), exact)


def test_far_ratios_have_one_loss_with_and_without_reduce() -> None:
    """Both clamp a difference of log-probs to 20; exp(100) is infinite."""
    batch = make_batch()
    batch["old_logp"][:, 0] -= 100
    batch["ref_logp"][:, 1] += 100
    tokens = batch["completion_mask"].sum()
    total, gradient, _ = run(batch, loss_type="bnpo", beta=0.5, reduce=True)
    losses, gradient_apart, _ = run(batch | {"upstream": 3 / tokens}, loss_type="bnpo", beta=0.5)
    torch.testing.assert_close(losses.sum() / tokens, total)
    torch.testing.assert_close(gradient_apart, gradient)


@pytest.mark.parametrize("change", ["no old", "vLLM [B, T]", "vLLM [B, 1]", "vLLM [B]"])
@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_other_arguments(level: str, reduce: bool, change: str) -> None:
    batch, vllm = make_batch(), torch.tensor([[1.3], [0.0], [0.6], [2.1]])
    if change == "no old":
        batch["old_logp"] = None
    else:
        sizes = {"vLLM [B, T]": vllm * torch.linspace(0.5, 1, TOKENS), "vLLM [B, 1]": vllm, "vLLM [B]": vllm[:, 0]}
        batch["vllm_is_ratio"] = sizes[change]
    setting = ("grpo", level, 0.5, None, True, reduce)
    assert_same(run(batch, **dict(zip(NAMES, setting, strict=True))), definition(batch, *setting))


@pytest.mark.parametrize("reduce", [False, True])
def test_entries_outside_the_mask_are_not_read(reduce: bool) -> None:
    batch = make_batch()
    settings = {"loss_type": "dapo", "beta": 0.5, "use_bias_correction_kl": True, "reduce": reduce}
    clean = run(batch, **settings)
    outside = batch["completion_mask"] == 0
    for name in ("old_logp", "ref_logp"):
        batch[name][outside] = torch.nan
    batch["completion_ids"][outside] = -100
    rows = torch.nn.functional.pad(outside, (0, 1), value=True)
    batch["logits"][rows] = torch.nan
    dirty = run(batch, **settings)
    assert (dirty[1][rows] == 0).all()
    for ours, theirs in zip((*dirty[:2], *dirty[2]), (*clean[:2], *clean[2]), strict=True):
        assert torch.equal(ours, theirs)


def test_the_gradient_overwrites_the_logits_if_allowed() -> None:
    for inplace, leaf in ((True, False), (True, True), (False, False)):
        batch = make_batch()
        del batch["upstream"]
        given = batch["logits"].clone().requires_grad_()
        batch["logits"] = given if leaf else given * 1
        before = batch["logits"].detach().clone()
        triton_grpo_loss(**batch, reduce=True, inplace=inplace)[0].backward()
        assert torch.equal(batch["logits"], before) == (leaf or not inplace)
        if inplace and not leaf:
            assert torch.equal(batch["logits"], given.grad)


def test_advantages_of_tokens_and_bfloat16_logits() -> None:
    batch = make_batch(torch.bfloat16)
    settings = {"loss_type": "grpo", "beta": 0.0, "reduce": True}
    exact = definition(batch, "grpo", "token", 0.0, None, False, True)
    batch["advantages"] = batch["advantages"][:, None].expand(SEQUENCES, TOKENS)
    loss, grad, metrics = run(batch, **settings)
    assert grad.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert abs(loss - exact[0]) < 1e-5 and (grad - exact[1]).norm() < 2**-8 * exact[1].norm()
    assert metrics[0] == exact[2][0].float()


def test_the_arguments_equal_ligers() -> None:
    ours, theirs = (inspect.signature(f).parameters.values() for f in (triton_grpo_loss, liger_grpo_loss))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss_type", {"loss_type": "sapo"}),
        ("vespo_k_neg", {"vespo_k_neg": 1.0}),
        ("eps_low", {"eps_low": -0.1}),
        ("delta", {"delta": 1.5, "loss_type": "cispo"}),
        ("ref_logp", {"ref_logp": None}),
        ("ref_logp", {"ref_logp": torch.zeros(4, 5)}),
        ("old_logp", {"old_logp": torch.zeros(4, 7)}),
        ("logits", {"logits": torch.zeros(4, 6, 40)}),
        ("completion_ids", {"completion_ids": torch.ones(4, 6, 1).long(), "completion_mask": None}),
        ("completion_mask", {"completion_mask": torch.ones(4, 7)}),
        ("vllm_is_ratio", {"vllm_is_ratio": torch.ones(4, 5)}),
        ("advantages", {"advantages": torch.ones(4, 6), "importance_sampling_level": "sequence"}),
    ],
)
def test_wrong_or_unsupported_arguments_are_refused_by_name(name: str, change: dict[str, Any]) -> None:
    batch = make_batch()
    del batch["upstream"]
    with pytest.raises(ValueError, match=rf"^{name}: got .*, want "):
        triton_grpo_loss(**batch | change)
