"""verl is not installed: its names, argument orders and defaults are written here, and torch gives the values."""

from __future__ import annotations

import inspect

import pytest
import torch

from capo_kernels.adapters import verl

SHAPES = [(7,), (2, 3)]


def in_float64(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logq = logits.log_softmax(-1)
    return logq.gather(-1, labels[..., None])[..., 0], -(logq.exp() * logq).sum(-1)


def signature(function) -> str:
    parameters = inspect.signature(function).parameters.values()
    return " ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)


def test_signatures() -> None:
    assert signature(verl.logprobs_from_logits) == "logits labels inplace_backward=True"
    linear = "hidden weight labels temperature=1.0 reduction='none' dist_process_group=None"
    assert signature(verl.linear_cross_entropy) == linear
    assert signature(verl.FusedLinearForPPO) == "chunk_size=512 impl_backend='torch'"
    forward = "hidden_states vocab_weights input_ids temperature=1.0"
    assert signature(verl.FusedLinearForPPO().forward) == forward


@pytest.mark.parametrize("shape", SHAPES)
def test_logprobs_from_logits(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(*shape, 40, requires_grad=True), torch.randint(40, shape)
    upstream, before = torch.randn(shape), logits.detach().clone()
    exact = logits.detach().double().requires_grad_()

    logp = verl.logprobs_from_logits(logits, labels)
    (logp * upstream).sum().backward()
    wanted, _ = in_float64(exact, labels)
    (wanted * upstream).sum().backward()

    assert logp.shape == shape and logp.dtype == torch.float32
    assert (logp - wanted).abs().max() < 1e-6
    assert (logits.grad - exact.grad).abs().max() < 1e-6
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", ["linear_cross_entropy", "FusedLinearForPPO"])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_and_entropies_of_a_linear_head(shape: tuple[int, ...], name: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(*shape, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    labels, upstream = torch.randint(40, shape, dtype=torch.int32), torch.randn(2, *shape)
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))

    if name == "linear_cross_entropy":
        outputs = verl.linear_cross_entropy(hidden, weight, labels, 0.7, "none")
        assert [x.shape for x in outputs] == [(labels.numel(),)] * 2
    else:
        outputs = verl.FusedLinearForPPO(chunk_size=4)(hidden, weight, labels, temperature=0.7)
        assert [x.shape for x in outputs] == [shape] * 2
    found = torch.stack(outputs).view_as(upstream)
    (found * upstream).sum().backward()
    wanted = torch.stack(in_float64(exact_hidden @ exact_weight.T / 0.7, labels.long()))
    (wanted * upstream).sum().backward()

    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-5
    assert (hidden.grad - exact_hidden.grad).abs().max() < 1e-5
    assert (weight.grad - exact_weight.grad).abs().max() < 1e-5


def test_results_have_the_shape_of_the_logits_for_any_shape_of_the_labels() -> None:
    labels = torch.randint(7, (1, 5))
    assert verl.logprobs_from_logits(torch.randn(5, 7), labels).shape == (5,)
    outputs = verl.FusedLinearForPPO()(torch.randn(5, 3), torch.randn(7, 3), labels)
    assert [x.shape for x in outputs] == [(5,)] * 2


@pytest.mark.parametrize("call", [verl.linear_cross_entropy, verl.FusedLinearForPPO()])
def test_logits_of_a_bfloat16_head_are_not_rounded(call) -> None:
    """With rounded logits the error was 4.5e-3; verl's own test allows 1e-3."""
    torch.manual_seed(0)
    hidden, weight = (torch.empty(*shape).uniform_(-0.5, 0.5).bfloat16() for shape in ((95, 256), (4032, 256)))
    labels = torch.randint(4032, (95,))
    wanted = in_float64(hidden.double() @ weight.double().T / 1.5, labels)
    for found, exact in zip(call(hidden, weight, labels, 1.5), wanted, strict=True):
        assert (found - exact).abs().max() < 5e-6


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("labels", lambda: verl.logprobs_from_logits(torch.zeros(5, 7), torch.zeros(4).long())),
        ("labels", lambda: verl.logprobs_from_logits(torch.zeros(5, 7), torch.zeros(5))),
        ("logits", lambda: verl.logprobs_from_logits(torch.zeros(7), torch.zeros(1).long())),
        ("weight", lambda: verl.linear_cross_entropy(torch.zeros(5, 3), torch.zeros(7, 4), torch.zeros(5).long())),
        ("hidden", lambda: verl.linear_cross_entropy([0.0], torch.zeros(7, 4), torch.zeros(5).long())),
        ("vocab_weights", lambda: verl.FusedLinearForPPO()(torch.zeros(5, 3), torch.zeros(7, 4), torch.zeros(5).int())),
        ("input_ids", lambda: verl.FusedLinearForPPO()(torch.zeros(5, 3), torch.zeros(7, 3), torch.zeros(2).int())),
        ("chunk_size", lambda: verl.FusedLinearForPPO(chunk_size=0)),
    ],
)
def test_errors_name_verls_arguments(name: str, call) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: got .*, want "):
        call()


def test_unsupported_arguments_are_refused_by_name() -> None:
    tensors = torch.zeros(2, 8), torch.zeros(40, 8), torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"^reduction: got 'mean'"):
        verl.linear_cross_entropy(*tensors, reduction="mean")
    with pytest.raises(ValueError, match=r"^dist_process_group: got "):
        verl.linear_cross_entropy(*tensors, dist_process_group=object())
    with pytest.raises(ValueError, match=r"^impl_backend: got 'liger'"):
        verl.FusedLinearForPPO(impl_backend="liger")
