"""vLLM in the trainer's process; the only module that builds and calls it.

The engine runs under vLLM's `external_launcher`: each torchrun rank holds an engine, or shares one with its neighbours
(`engine.tensor_parallel`); these must send the same requests in the same order. Weights are copied into the model in
place, each rank its slices, because vLLM's own reload makes every module again.

vllm is imported inside functions: the import takes seconds, and it reads environment variables that `start_llm` sets.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from capo_fast.config.schema import EngineConfig, LoraConfig
from capo_fast.engine.base import EngineError
from capo_fast.engine.vllm_start import check_version, installed_version, start_llm, without_brackets
from capo_fast.engine.vllm_weights import adapter_checksums, fused_names, load_weights, weight_checksums, weight_names
from capo_fast.records import Completion, Request
from capo_fast.runtime.files import naming, passing_folder


class VllmEngine:
    """One in-process vLLM engine. `torch.distributed` must be initialised before it is built."""

    pause_s = 0.0

    def __init__(self, model_path: str, config: EngineConfig, lora: LoraConfig | None = None) -> None:
        """model_path: folder or hub id; the engine has its weights until the first `load`. lora: None if no weights are
        pushed; with a rank, unless `config.merge_lora` is true, the engine accepts adapters."""
        check_version(installed_version())
        pushed, lora = lora is not None, lora or LoraConfig()
        self._adapter: Any = None
        self._versions = 0
        self._asleep = False
        self._scored: dict[str, Request] = {}
        """Running requests for log-probs, by id."""
        self._sleep_level = 1 if lora.rank else 2
        """1 keeps the weights on the host, as pushes of an adapter don't reload the base. 2 drops them."""
        with ExitStack() as undo:
            path = undo.enter_context(without_brackets(model_path))
            try:
                self._llm = start_llm(path, config, lora)
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
        if request.scored:
            self._scored[request.id] = request
        self._add(request, self.sampling_params(request))

    def _add(self, request: Request, params: Any) -> None:
        from vllm.inputs import tokens_input

        prompt = tokens_input(list(request.prompt_ids))
        adapter = None if request.base else self._adapter
        self._llm.llm_engine.add_request(request.id, prompt, params, lora_request=adapter)

    def sampling_params(self, request: Request, cached: bool = True) -> Any:
        """vLLM's parameters of one request. cached: whether a scored request may read the prefix cache."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=0,
            prompt_logprobs=0 if request.scored else None,
            skip_reading_prefix_cache=not cached if request.scored else None,
            stop=list(request.stop),
            include_stop_str_in_output=bool(request.stop),
            detokenize=bool(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=request.regex) if request.regex else None,
            skip_clone=True,  # this object is used once, so vLLM need not deep-copy it
        )

    def step(self) -> list[Completion]:
        # vLLM's CPU sampler draws from torch's global generator, a number of times that depends on timing; every
        # checkpoint has this generator's state.
        with torch.random.fork_rng(devices=[]):
            ended = [output for output in self._llm.llm_engine.step() if output.finished]
        return [self._completion(output) for output in ended if not self._is_scored_again(output)]

    def _is_scored_again(self, output: Any) -> bool:
        """Whether the request was added again, without the prefix cache: vLLM returns no log-probs of cached tokens."""
        request = self._scored.get(output.request_id)
        if request is None or output.num_cached_tokens < len(request.prompt_ids) - request.scored:
            return False
        self._add(request, self.sampling_params(request, cached=False))
        return True

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        from vllm.v1.engine import FinishReason

        # Only vLLM's asynchronous front end makes outputs of aborted requests, by this same call.
        processor = self._llm.llm_engine.output_processor
        states = [processor.request_states[processor.external_req_ids[name][0]] for name in ids]
        outputs = [state.make_request_output([], None, FinishReason.ABORT, None) for state in states]
        for name in ids:  # one by one: vLLM would free several in the order of a set, which differs between ranks
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
        except (
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # such as Phi-3, whose q, k and v are one tensor
            raise EngineError(f"vLLM's weights of {self._architecture} can't be compared: {error}") from error

    def weight_names(self) -> set[str]:
        """Hugging Face names of all weights that the engine computes with."""
        return self._llm.apply_model(weight_names)[0]

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        from vllm.lora.request import LoRARequest

        # vLLM's prefix cache identifies adapters by name, its slots by id: both are new each time.
        self._versions += 1
        with self._waking(), passing_folder(sum(map(len, files.values()))) as folder:
            for name, data in files.items():
                with naming(folder / name):
                    (folder / name).write_bytes(data)
            if self._adapter is not None:
                self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = LoRARequest(f"policy-{self._versions}", self._versions, str(folder))
            self._llm.llm_engine.add_lora(self._adapter)
        # The base's prefixes are still valid, but a resumed run would not have them, and its bits would differ.
        self.forget_prefixes()

    def forget_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept its cached prefixes: requests are running")

    def sleep(self) -> None:
        # Never run on a GPU yet. On a CPU there is nothing to free.
        if torch.cuda.is_available() and not self._asleep:
            self._llm.sleep(level=self._sleep_level)
            self._asleep = True

    @contextmanager
    def _waking(self) -> Iterator[None]:
        """Wake the weights before they are loaded, and the cache, empty, after. In another order vLLM crashes
        (vllm#45619) or answers with garbage (vllm#29341)."""
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
        all_params = [first, *[params] * (len(prompts) - 1)]
        with torch.random.fork_rng(devices=[]):  # as in `step`
            outputs = self._llm.generate(prompts, all_params, use_tqdm=False, lora_request=adapters)
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
        if (request := self._scored.pop(output.request_id, None)) is not None:
            return self._scored_completion(output, request.scored)
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

    def _scored_completion(self, output: Any, count: int) -> Completion:
        token_ids = tuple(output.prompt_token_ids[-count:])
        logprobs = (at[token].logprob for token, at in zip(token_ids, output.prompt_logprobs[-count:], strict=True))
        return Completion(
            id=output.request_id,
            token_ids=token_ids,
            logprobs=tuple(logprobs),
            text="",
            finished=True,
            prompt_tokens=len(output.prompt_token_ids) - count,
            cached_tokens=output.num_cached_tokens or 0,
        )
