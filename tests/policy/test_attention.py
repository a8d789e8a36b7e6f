"""The attentions of packed rows against each other, and that those for a GPU launch no more for more sequences."""

from __future__ import annotations

import pytest
import torch
from dispatched import Operations
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from capo_fast.policy.attention import attend_each, attend_padded, attend_varlen, choose_attention

LENGTHS = (5, 1, 9)


def varlen_stub(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """torch's varlen_attn by one dense mask, in any dtype and on any device."""
    assert max_q == max_k == cu_seq_q.diff().max() and cu_seq_q.dtype == torch.int32 and window_size == (-1, 0)
    place_N = torch.arange(len(q))
    sequence_N = torch.searchsorted(cu_seq_q[1:], place_N, right=True)
    mask_NN = (sequence_N[:, None] == sequence_N) & (place_N[:, None] >= place_N)
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask_NN, scale=scale, enable_gqa=enable_gqa).transpose(0, 1)


def tensors(lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), heads, 8) for heads in (4, 2, 2)]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("attend", [attend_padded, attend_varlen])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_gpus_attention_and_its_gradients_are_those_of_each_sequence(attend, scale, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", varlen_stub)
    found = []
    for each in (attend, attend_each):
        q, k, v = tensors(LENGTHS)
        out = each(q, k, v, LENGTHS, scale)
        found.append([out, *torch.autograd.grad((out * torch.arange(8)).sum(), (q, k, v))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("attend", [attend_padded, attend_varlen])
def test_more_sequences_are_no_more_operations_and_no_wait(attend, monkeypatch):
    """Beyond the first layer, which makes the indices of all."""
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, *bounds, **options: q * 1)
    counts = []
    for lengths in ((8, 8), (1,) * 16):
        q, k, v = tensors(lengths)
        attend(q, k, v, lengths, None)
        with Operations() as seen:
            attend(q, k, v, lengths, None)
        counts.append(seen.count)
    assert counts[0] == counts[1]
    assert not {"_local_scalar_dense", "nonzero", "masked_select", "_to_copy"} & set(counts[0])


def test_the_attention_is_chosen_by_device_and_dtype(monkeypatch):
    assert choose_attention("cpu", torch.bfloat16) is attend_each
    assert choose_attention("cuda", torch.float32) is attend_padded
    assert choose_attention("cuda", torch.bfloat16) is attend_varlen
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, is_causal=False: q)  # torch 2.10
    with pytest.raises(ValueError, match=r"varlen_attn of torch .* has no scale, window_size, wanted torch 2\.11"):
        choose_attention("cuda", torch.bfloat16)
