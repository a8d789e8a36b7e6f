"""Loads and checksums a vLLM model's weights, by Hugging Face and PEFT names. Runs inside vLLM's workers.

Under tensor parallelism each rank holds slices. Each rank sums its own, at their places in the whole, and the ranks add
their sums. A weight that several ranks hold (norms, key/value heads fewer than ranks) counts with its share on each, so
every copy is read.

vLLM's CPU kernels keep packed copies of matrices, most of them without the original. A matrix is summed before it is
packed. When checksums are read, the packed copy is verified: its product with the places' weights must equal the row
sums, within the kernel's rounding. A copy that fails, or that was not packed by `load_weights`, is unpacked and summed.

vllm is imported inside functions, as in vllm.py.

Letters: N rows and K columns of a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch

from capo_fast.engine.base import EngineError
from capo_fast.engine.checksum import checksum_of_rows, place_weights, row_sums

KERNEL_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative tolerance of a kernel's row sum; the scale is the exact row sum plus the RMS of all row sums. Matrices of a
less exact kernel are unpacked, which costs time."""
GROUP = 96
"""Columns that a kernel sums at once, in its own precision."""


@dataclass(frozen=True)
class Slice:
    """Position and size of a rank's slice in the whole weight, and the number of equal copies of it on the ranks."""

    row: int
    column: int
    rows: int
    columns: int
    copies: int = 1

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        rows = whole[self.row : self.row + self.rows]
        return rows if whole.ndim == 1 else rows[:, self.column : self.column + self.columns]


@dataclass(frozen=True)
class Packed:
    """`linear`, a module's function over its packed copy, and the `row_sums` of the matrix that was packed."""

    linear: Any
    sums_N: torch.Tensor


_packed: WeakKeyDictionary[Any, Packed] = WeakKeyDictionary()
_known: WeakKeyDictionary[Any, dict[str, Weight]] = WeakKeyDictionary()
"""Cached results of `_weights` per model: vLLM makes a model's modules once."""


@dataclass(frozen=True)
class Weight:
    """One weight with a Hugging Face name: its module, and its index among the weights that are fused there."""

    module: Any
    kind: str
    """`weight` or `bias`."""
    index: int
    places: list[Slice]
    """Slices of all weights that are fused."""
    is_head: bool

    @property
    def place(self) -> Slice:
        return self.places[self.index]

    @property
    def packed_alone(self) -> bool:
        """Whether only the kernel's packed copy is kept."""
        return self.packed and self.module.weight.numel() == 0

    @property
    def packed(self) -> bool:
        """Whether the model computes with a packed copy. The embeddings have one as well, but it is not used."""
        linear = self.is_head or self.module.weight.numel() == 0
        return self.kind == "weight" and hasattr(self.module, "cpu_linear") and linear


@torch.no_grad()
def load_weights(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy weights into the model's weights of the same names, in place; pack again those that the kernels keep packed.

    All parts of a packed fused matrix must be given. Raises EngineError for an unknown name.
    """
    known = _weights(model)
    waiting: dict[Any, dict[int, torch.Tensor]] = {}
    before, memory = None, 0
    for name, whole in weights:
        if name not in known:
            raise EngineError(f"vLLM's model has no weight {name}")
        weight = known[name]
        piece = weight.place.cut(whole)
        if weight.packed_alone:
            _collect(weight, piece, waiting)
            continue
        held = _held(weight)[weight.index]
        if whole is not before or held.data_ptr() != memory:  # a tied head was copied as the embedding
            held.copy_(piece)
        before, memory = whole, held.data_ptr()
        if weight.packed:
            _pack(weight, weight.module.weight)


def _collect(weight: Weight, piece: torch.Tensor, waiting: dict[Any, dict[int, torch.Tensor]]) -> None:
    """Pack a matrix once all its parts have come."""
    parts = waiting.setdefault(weight.module, {})
    parts[weight.index] = piece
    if len(parts) == len(weight.places):
        del waiting[weight.module]
        fused = piece if len(parts) == 1 else torch.cat([parts[i] for i in range(len(parts))])
        _pack(weight, fused.to(weight.module.weight.dtype).contiguous())


@torch.no_grad()
def weight_checksums(model: Any) -> dict[str, float]:
    """`checksum` of every weight by Hugging Face name, without adapters."""
    found: dict[str, torch.Tensor] = {}
    sums: Sequence[torch.Tensor] = ()
    for name, weight in _weights(model).items():
        if weight.index == 0:
            sums = _row_sums(weight)
        found[name] = checksum_of_rows(sums[weight.index], weight.place.row) / weight.place.copies
    return _summed_over_ranks(found)


def weight_names(model: Any) -> set[str]:
    """Hugging Face names of all weights."""
    return set(_weights(model))


def fused_names(model: Any) -> dict[str, set[str]]:
    """The names of all weights that vLLM has fused with each weight, itself included, by its name."""
    fused: dict[tuple[Any, str, bool], set[str]] = {}
    known = {name: (weight.module, weight.kind, weight.is_head) for name, weight in _weights(model).items()}
    for name, key in known.items():
        fused.setdefault(key, set()).add(name)
    return {name: fused[key] for name, key in known.items()}


@torch.no_grad()
def adapter_checksums(model: Any) -> dict[str, float]:
    """`checksum` of the LoRA adapter's matrices by PEFT name; B is multiplied by alpha / R, as vLLM stores it."""
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.model_executor.layers.linear import RowParallelLinear

    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseLayerWithLoRA):
            continue
        base, ranks = module.base_layer, get_tensor_model_parallel_world_size()
        # All slots but one are zero.
        As, Bs = ([slots.sum((0, 1)) for slots in kept] for kept in (module.lora_a_stacked, module.lora_b_stacked))
        by_row = isinstance(base, RowParallelLinear)
        for part, A, B, place in zip(_parts(model, name), As, Bs, _places(base, "weight"), strict=True):
            if A.any():  # some parts of a fused layer may have no adapter
                sum_A, sum_B = checksum_of_rows(row_sums(A, place.column)), checksum_of_rows(row_sums(B), place.row)
                found[f"{part}.lora_A.weight"] = sum_A / (1 if by_row else ranks)
                found[f"{part}.lora_B.weight"] = sum_B / (ranks if by_row else place.copies)
    return _summed_over_ranks(found)


def _weights(model: Any) -> dict[str, Weight]:
    """Every weight by Hugging Face name; fused weights are consecutive."""
    if model not in _known:
        _known[model] = _found_weights(model)
    return _known[model]


def _found_weights(model: Any) -> dict[str, Weight]:
    from vllm.lora.layers import BaseLayerWithLoRA

    found: dict[str, Weight] = {}
    # A tied head of vLLM 0.27 is the embedding's own module: one module under two names.
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(getattr(module, "weight", None), torch.Tensor) or isinstance(module, BaseLayerWithLoRA):
            continue
        name = name.removesuffix(".base_layer")
        for kind in ("weight", "bias"):
            if isinstance(getattr(module, kind, None), torch.Tensor):
                places, is_head = _places(module, kind), name.endswith("lm_head")
                for i, part in enumerate(_parts(model, name)):
                    found[f"{part}.{kind}"] = Weight(module, kind, i, places, is_head)
    return found


def _parts(model: Any, name: str) -> list[str]:
    """Hugging Face names of the layers that vLLM has fused into this one, or its own name."""
    parent, _, leaf = name.rpartition(".")
    return [f"{parent}.{part}" for part in model.packed_modules_mapping.get(leaf, [])] or [name]


def _places(module: Any, kind: str) -> list[Slice]:
    """This rank's slice of each weight that the module has fused into one."""
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    weight, ranks = getattr(module, kind), get_tensor_model_parallel_world_size()
    columns = getattr(module, "input_size_per_partition", weight.shape[-1])
    heights = getattr(module, "output_partition_sizes", [len(weight)])
    if isinstance(module, VocabParallelEmbedding):
        held = module.shard_indices
        return [Slice(held.org_vocab_start_index, 0, held.num_org_elements, module.embedding_dim)]
    if isinstance(module, RowParallelLinear) and kind == "weight":
        return [Slice(0, module.tp_rank * columns, heights[0], columns)]
    if not isinstance(module, ColumnParallelLinear):
        return [Slice(0, 0, rows, columns, ranks) for rows in heights]
    # k and v of a fused q, k, v: with fewer key/value heads than ranks, neighbouring ranks hold the same heads.
    copies = [1] + [getattr(module, "num_kv_head_replicas", 1)] * (len(heights) - 1)
    return [
        Slice(module.tp_rank // held * rows, 0, rows, columns, held) for rows, held in zip(heights, copies, strict=True)
    ]


def _held(weight: Weight) -> Sequence[torch.Tensor]:
    """This rank's slices of all fused weights, without padding."""
    sizes = [place.rows for place in weight.places]
    return getattr(weight.module, weight.kind)[: sum(sizes)].split(sizes)


def _pack(weight: Weight, fused: torch.Tensor) -> None:
    """Pack a matrix, [N, K], for the kernel."""
    module = weight.module
    before = module.cpu_linear
    if fused is not module.weight:  # vLLM dropped the weight when it packed it
        module.weight = torch.nn.Parameter(fused, requires_grad=False)
    module.quant_method.process_weights_after_loading(module)
    if module.cpu_linear is not before:
        _packed[module] = Packed(module.cpu_linear, row_sums(fused, weight.place.column))


def _row_sums(weight: Weight) -> Sequence[torch.Tensor]:
    """`row_sums` of this rank's slices of all fused weights."""
    if not weight.packed:
        return [row_sums(held, place.column) for held, place in zip(_held(weight), weight.places, strict=True)]
    module, place = weight.module, weight.place
    known = _packed.get(module)
    if known is None or known.linear is not module.cpu_linear or not _computes_with(module, known.sums_N, place):
        known = _packed[module] = Packed(module.cpu_linear, row_sums(_unpacked(module, place.columns), place.column))
    sizes = [each.rows for each in weight.places]
    return known.sums_N[: sum(sizes)].split(sizes)


def _computes_with(module: Any, sums_N: torch.Tensor, place: Slice) -> bool:
    """Whether the packed copy has these row sums, within the kernel's rounding."""
    dtype = module.weight.dtype
    groups_GN = module.quant_method.apply(module, _grouped_places(place.columns, place.column, dtype), None)
    gap_N = (groups_GN.sum(0, dtype=torch.float64) - sums_N).abs()
    return bool((gap_N <= KERNEL_TOLERANCE[dtype] * (sums_N.abs() + sums_N.square().mean().sqrt())).all())


@lru_cache(maxsize=64)
def _grouped_places(columns: int, start: int, dtype: torch.dtype) -> torch.Tensor:
    """[G, K], the places' weights; row g has those of the g-th group of columns, else zeros."""
    at_K = torch.arange(columns)
    grouped_GK = torch.zeros(-(-columns // GROUP), columns, dtype=dtype)
    grouped_GK[at_K // GROUP, at_K] = place_weights(columns, at_K.device, start, column=True).to(dtype)
    return grouped_GK


def _unpacked(module: Any, columns: int) -> torch.Tensor:
    """[N, K], the matrix that the kernel computes with: its output for the identity, exact in any dtype because each
    output is one product."""
    return module.quant_method.apply(module, torch.eye(columns, dtype=module.weight.dtype), None).t()


def _summed_over_ranks(found: dict[str, torch.Tensor]) -> dict[str, float]:
    from vllm.distributed import get_tp_group

    if not found:
        return {}
    sums = torch.stack(list(found.values())).cpu()
    torch.distributed.all_reduce(sums, group=get_tp_group().cpu_group)
    return dict(zip(found, sums.tolist(), strict=True))
