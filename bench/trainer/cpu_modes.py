"""Modes of the engine and the learner on a CPU, each in a separate process.

    python -m bench.trainer.cpu_modes [engine | learner] [--model FOLDER] [--threads 2] [--modes ...] [--json FILE]

engine: seconds of a start, and tokens per second of 32 sequences of 96 tokens after a prompt of 64, float32.

    eager      without compilation
    compiled   `engine.enforce_eager: false`, with an empty cache of compiled code
    again      the same with the cache that `compiled` wrote
    adapter    eager, LoRA of rank 8 in vLLM's LoRA kernels (`engine.merge_lora: false`); a merged adapter is as eager
    bfloat16   eager, in bfloat16

learner: seconds of a training step on the same number of tokens, by `policy.dtype`; the master weights are float32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.machine import about
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config, EngineConfig, LoraConfig, LossConfig, PolicyConfig, TrainConfig

SEQUENCES, PROMPT, TOKENS, ROUNDS = 32, 64, 96, 3
ENGINE = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=64, kv_cache_gb=0.5, enforce_eager=True)
MODES = {
    "engine": ("eager", "compiled", "again", "adapter", "bfloat16"),
    "learner": ("float32", "bfloat16"),
}


def prompts(count: int, length: int) -> list[tuple[int, ...]]:
    return [tuple(3 + (i * 7 + j * j) % 40 for j in range(length)) for i in range(count)]


def engine(model: str, mode: str) -> dict[str, float]:
    from capo_fast.engine.vllm import VllmEngine

    config = replace(
        ENGINE,
        enforce_eager=mode not in ("compiled", "again"),
        dtype="bfloat16" if mode == "bfloat16" else "float32",
    )
    lora = LoraConfig(rank=8) if mode == "adapter" else None
    start = time.perf_counter()
    vllm = VllmEngine(model, config, lora)
    started = time.perf_counter() - start
    if lora:
        vllm.load_adapter(random_adapter(model, lora))
    rates = [rate(vllm) for _ in range(ROUNDS)]
    vllm.close()
    return {"start seconds": started, "tokens a second": median(rates[1:])}


def random_adapter(model: str, lora: LoraConfig) -> dict[str, bytes]:
    from capo_fast.policy.lora import adapter_files, add_adapter
    from capo_fast.policy.model import load_model

    policy = load_model(model, "sdpa")
    add_adapter(policy, lora, seed=0)
    weights = {
        name.replace(".default.weight", ".weight"): torch.randn_like(weight) * 0.01
        for name, weight in policy.state_dict().items()
        if ".lora_" in name
    }
    return adapter_files(policy, weights)


def rate(vllm: Any) -> float:
    """Decoded tokens per second; every sequence has TOKENS tokens."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts(SEQUENCES, PROMPT)]
    settings = [
        SamplingParams(temperature=1.0, seed=i, max_tokens=TOKENS, logprobs=0, detokenize=False, ignore_eos=True)
        for i in range(SEQUENCES)
    ]
    vllm.forget_prefixes()
    start = time.perf_counter()
    vllm._llm.generate(inputs, settings, use_tqdm=False, lora_request=vllm._adapter)
    return SEQUENCES * TOKENS / (time.perf_counter() - start)


def learner(model: str, dtype: str) -> dict[str, float]:
    from torch.distributed.device_mesh import init_device_mesh

    from capo_fast.policy.batch import pack_update
    from capo_fast.policy.learner import Learner
    from capo_fast.policy.model import load_model, shard_policy

    config = Config(
        policy=PolicyConfig(dtype=dtype),
        train=TrainConfig(micro_tokens=2048, epochs=1, minibatches=1),
        loss=LossConfig(kl_coef=0.0),
    )
    policy = shard_policy(load_model(model, "sdpa").train(), config.policy, init_device_mesh("cpu", (1,)))
    trained = Learner(policy, None, config)
    batch = [pack_update(samples(config), config, 0, 1)]
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        trained.train_batch(batch)
        seconds.append(time.perf_counter() - start)
    return {"step seconds": median(seconds[1:])}


def samples(config: Config) -> list[Any]:
    """8 rollouts of each of two prompts; every other rollout is right."""
    from capo_fast.credit.assign import assign_credit
    from capo_fast.records import Prompt, Rollout, Sample, StepSpans

    def sample(group: int, i: int) -> Sample:
        prompt = Prompt(str(group), "", "", None, prompts(2, PROMPT)[group])
        tokens = prompts(16, TOKENS)[8 * group + i]
        rollout = Rollout(
            prompt,
            group,
            i,
            0,
            tokens,
            (-1.0,) * TOKENS,
            "",
            True,
            StepSpans(tuple(j == 0 for j in range(TOKENS)), ("",)),
        )
        return Sample(rollout, outcome=float(i % 2), critiques=(), step_wrong=(0.0,))

    return assign_credit([sample(group, i) for group in range(2) for i in range(8)], config)


def child(part: str, mode: str, model: str, threads: int, cache: str) -> dict[str, float]:
    """Measure one mode in a separate process."""
    command = [sys.executable, "-m", "bench.trainer.cpu_modes", part, "--model", model, "--mode", mode]
    own = {"OMP_NUM_THREADS": str(threads), "VLLM_CACHE_ROOT": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | own).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=MODES, nargs="?", default="engine")
    parser.add_argument("--model", default="pkg://capo_fast.tiny/model")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--modes", nargs="*", help="modes of the part (all)")
    parser.add_argument("--mode", help="measure one mode in this process")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    model = resolve_model(options.model)
    if options.mode:
        from capo_fast.runtime.ranks import ranks

        with ranks():
            print(json.dumps((engine if options.part == "engine" else learner)(model, options.mode)))
        return
    with tempfile.TemporaryDirectory() as cache:
        modes = options.modes or MODES[options.part]
        found = {mode: child(options.part, mode, model, options.threads, cache) for mode in modes}
    for mode, figures in found.items():
        print(f"{mode}:", {name: round(value, 3) for name, value in figures.items()})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = about(options.threads) | {"model": Path(options.model).name} | found
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
