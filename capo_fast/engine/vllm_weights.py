"""What a vLLM model computes with, as checksums by Hugging Face and PEFT names; runs inside vLLM's workers.

Under tensor parallelism each rank sums its slices, at their places in the whole, and the ranks add up. What several
ranks hold (norms, key/value heads fewer than ranks) counts with its share on each: every copy is looked at.

vllm is imported inside functions, as in vllm.py.

Letters: N rows and K columns of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from capo_fast.engine.checksum import checksum


@torch.no_grad()
def weight_checksums(model: Any) -> dict[str, float]:
    """`checksum` of every weight by Hugging Face name; an adapter's apart."""
    found: dict[str, float] = {}
    for name, module in _weighted_modules(model):
        names = _parts(model, name)
        weights = _weight_checksums(module, is_head=name.endswith("lm_head"))
        found |= zip((f"{part}.weight" for part in names), weights, strict=True)
        if isinstance(getattr(module, "bias", None), torch.Tensor):
            found |= zip((f"{part}.bias" for part in names), _bias_checksums(module), strict=True)
    return _summed_over_ranks(found)


def weight_names(model: Any) -> set[str]:
    """Hugging Face's names of all weights."""
    return {
        f"{part}.{kind}"
        for name, module in _weighted_modules(model)
        for part in _parts(model, name)
        for kind in ("weight", "bias")
        if isinstance(getattr(module, kind, None), torch.Tensor)
    }


def _weighted_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules that have a weight of the model, by vLLM's names."""
    from vllm.lora.layers import BaseLayerWithLoRA

    # A tied head of vLLM 0.27 is the embedding's own module: one module under two names.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(getattr(module, "weight", None), torch.Tensor) and not isinstance(module, BaseLayerWithLoRA):
            yield name.removesuffix(".base_layer"), module


@torch.no_grad()
def adapter_checksums(model: Any) -> dict[str, float]:
    """`checksum` of the LoRA adapter by PEFT's names, B times alpha / R as vLLM keeps it."""
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.model_executor.layers.linear import RowParallelLinear

    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseLayerWithLoRA):
            continue
        names, base, ranks = _parts(model, name), module.base_layer, get_tensor_model_parallel_world_size()
        # All slots but one are zero.
        As, Bs = ([slots.sum((0, 1)) for slots in kept] for kept in (module.lora_a_stacked, module.lora_b_stacked))
        if isinstance(base, RowParallelLinear):
            sums_A = [checksum(A, column=base.tp_rank * base.input_size_per_partition) for A in As]
            sums_B = [checksum(B) / ranks for B in Bs]
        else:
            sums_A, sums_B = [checksum(A) / ranks for A in As], _row_checksums(base, Bs)
        for part, A, sum_A, sum_B in zip(names, As, sums_A, sums_B, strict=True):
            if A.any():  # parts of a fused layer may go without
                found |= {f"{part}.lora_A.weight": sum_A, f"{part}.lora_B.weight": sum_B}
    return _summed_over_ranks(found)


def _parts(model: Any, name: str) -> list[str]:
    """Hugging Face's names of the layers that vLLM has fused into this one, or its own name."""
    parent, _, leaf = name.rpartition(".")
    return [f"{parent}.{part}" for part in model.packed_modules_mapping.get(leaf, [])] or [name]


def _summed_over_ranks(found: dict[str, float]) -> dict[str, float]:
    from vllm.distributed import get_tp_group

    if not found:
        return found
    sums = torch.tensor(list(found.values()), dtype=torch.float64)
    torch.distributed.all_reduce(sums, group=get_tp_group().cpu_group)
    return dict(zip(found, sums.tolist(), strict=True))


def _weight_checksums(module: Any, is_head: bool) -> list[float]:
    """Of this rank's slice of each weight that the module has packed into one."""
    from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    weight = module.weight
    if hasattr(module, "cpu_linear") and isinstance(module, LinearBase):
        weight = _unpacked(module, module.input_size_per_partition)
    elif hasattr(module, "cpu_linear") and is_head:
        weight = _unpacked(module, module.embedding_dim)
    if isinstance(module, VocabParallelEmbedding):
        held = module.shard_indices
        return [checksum(weight[: held.num_org_elements], row=held.org_vocab_start_index)]
    if isinstance(module, RowParallelLinear):
        return [checksum(weight, column=module.tp_rank * module.input_size_per_partition)]
    return _row_checksums(module, _packed(module, weight))


def _bias_checksums(module: Any) -> list[float]:
    from vllm.model_executor.layers.linear import RowParallelLinear

    if isinstance(module, RowParallelLinear):  # added once, on the first rank, but held by all
        return [checksum(module.bias) / module.tp_size]
    return _row_checksums(module, _packed(module, module.bias))


def _packed(module: Any, weight: torch.Tensor) -> list[torch.Tensor]:
    """The weights that vLLM has packed into one."""
    return list(weight.split(getattr(module, "output_partition_sizes", len(weight))))


def _row_checksums(module: Any, pieces: Sequence[torch.Tensor]) -> list[float]:
    """Of weights whose rows are divided over the ranks, or of which each rank holds all."""
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    if not isinstance(module, ColumnParallelLinear):
        return [checksum(piece) / get_tensor_model_parallel_world_size() for piece in pieces]
    # Of a packed q, k, v the last two: with fewer key/value heads than ranks, neighbours hold the same.
    copies = [1] + [getattr(module, "num_kv_head_replicas", 1)] * (len(pieces) - 1)
    return [
        checksum(piece, row=module.tp_rank // held * len(piece)) / held
        for piece, held in zip(pieces, copies, strict=True)
    ]


def _unpacked(module: Any, columns: int) -> torch.Tensor:
    """[N, K], the matrix that vLLM's CPU kernel computes with: it keeps only a packed copy.

    Each output of the kernel for the identity is one product, so this is exact in any dtype.
    """
    return module.quant_method.apply(module, torch.eye(columns, dtype=module.weight.dtype), None).t()
