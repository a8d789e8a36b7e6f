"""Attention over packed rows against one sequence at a time; more segments need no more operations."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from dispatched import Operations
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from capo_fast.policy.attention import attend_each, attend_flash, attend_padded, attend_varlen, choose_attention

PACKINGS = {
    "apart": ((5, 1, 9), (None, None, None)),
    "shared": ((3, 2, 1, 6, 4, 2, 5, 1), (None, 0, 0, None, None, 4, 4, 4)),
}
"""Lengths of segments, and the index of each segment's prefix."""


def dense(q, k, v, cut_q, cut_k, scale, window=None):
    """Causal attention with one dense mask, for any dtype; pieces of q and k are aligned at their last tokens."""
    sequence_N = torch.searchsorted(cut_q[1:], torch.arange(len(q)), right=True)
    sequence_M = torch.searchsorted(cut_k[1:], torch.arange(len(k)), right=True)
    before_N = cut_q[1:][sequence_N] - torch.arange(len(q))  # from the end of the piece
    before_M = cut_k[1:][sequence_M] - torch.arange(len(k))
    back_NM = before_M - before_N[:, None]
    mask_NM = (sequence_N[:, None] == sequence_M) & (back_NM >= 0) & (back_NM < (window or len(k)))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    grouped = q.shape[0] != k.shape[0]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask_NM, scale=scale, enable_gqa=grouped).transpose(0, 1)


def checked_cuts(cut_q, cut_k, max_q, max_k):
    assert cut_q.dtype == cut_k.dtype == torch.int32
    assert (max_q, max_k) == (cut_q.diff().max(), cut_k.diff().max())


def varlen_stub(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """A stub of torch's varlen_attn."""
    checked_cuts(cu_seq_q, cu_seq_k, max_q, max_k)
    assert window_size == (-1, 0) and enable_gqa
    return dense(q, k, v, cu_seq_q, cu_seq_k, scale)


def flash_stub(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
):
    """A stub of flash_attn.flash_attn_varlen_func."""
    checked_cuts(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal and window_size[1] <= 0
    window = window_size[0] + 1 if window_size[0] >= 0 else None
    return dense(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window)


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", varlen_stub)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_stub))


def tensors(lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), heads, 8) for heads in (4, 2, 2)]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def one_by_one(q, k, v, lengths, prefix, scale, window=None):
    """Attention of each segment, computed separately as prefix plus segment."""
    token = torch.arange(sum(lengths)).split(list(lengths))
    found = []
    for own, before in zip(token, prefix, strict=True):
        ids = own if before is None else torch.cat([token[before], own])
        whole = torch.tensor([0, len(ids)])
        found.append(dense(q[ids], k[ids], v[ids], whole, whole, scale, window)[-len(own) :])
    return torch.cat(found)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("attend", [attend_each, attend_padded, attend_varlen, attend_flash])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_and_its_gradients_equal_those_of_each_sequence(attend, scale, packing, stubs):
    found, (lengths, prefix) = [], PACKINGS[packing]
    for each in (attend, one_by_one):
        q, k, v = tensors(lengths)
        out = each(q, k, v, lengths, prefix, scale)
        found.append([out, *torch.autograd.grad((out * torch.arange(8)).sum(), (q, k, v))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-13)


def test_a_sliding_window_reaches_over_the_prefix(stubs):
    lengths, prefix = PACKINGS["shared"]
    q, k, v = tensors(lengths)
    found = attend_flash(q, k, v, lengths, prefix, window=3)
    torch.testing.assert_close(found, one_by_one(q, k, v, lengths, prefix, None, window=3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("attend", [attend_padded, attend_varlen, attend_flash])
def test_more_segments_add_no_operation_and_no_synchronisation(attend, monkeypatch):
    """Measured after the first layer, which computes the indices for all layers."""
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, *bounds, **options: q * 1)
    flash = SimpleNamespace(flash_attn_varlen_func=lambda q, k, v, *bounds, **options: q * 1)
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    counts = []
    for lengths, prefix in (((8, 4), (None, 0)), ((1,) * 16, (None, *[0] * 7) * 2)):
        q, k, v = tensors(lengths)
        attend(q, k, v, lengths, prefix)
        with Operations() as operations:
            attend(q, k, v, lengths, prefix)
        counts.append(operations.count)
    assert counts[0] == counts[1]
    assert not {"_local_scalar_dense", "nonzero", "masked_select", "_to_copy"} & set(counts[0])


def test_the_attention_is_chosen_by_device_and_dtype(monkeypatch):
    assert choose_attention("cpu", torch.bfloat16) is attend_each
    assert choose_attention("cuda", torch.float32) is attend_padded
    assert choose_attention("cuda", torch.bfloat16) is attend_varlen
    assert choose_attention("cuda", torch.bfloat16, "flash_attention_2") is attend_flash
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        with pytest.raises(ValueError, match=rf"flash_attention_2 can't run on {device} in {dtype}, wanted sdpa"):
            choose_attention(device, dtype, "flash_attention_2")
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, is_causal=False: q)  # torch 2.10
    with pytest.raises(ValueError, match=r"varlen_attn of torch .* has no scale, window_size, wanted torch 2\.11"):
        choose_attention("cuda", torch.bfloat16)
