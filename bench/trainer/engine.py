"""Overhead of the trainer's use of vLLM, and the gain of streaming critiques.

    python -m bench.trainer.engine [--rounds 5] [--threads N] [--json FILE]

Three parts, each a process with a random Qwen2 in float32 and one in-process vLLM; arms take turns in every round.

throughput, at hidden size 384 and 6 layers, where the model dominates the time on a CPU:

    bare       `vllm.LLM.generate` on the rollouts' prompts with their seeds, limits and log-probs, no detokenization;
               its prompts and parameters are made before the clock starts
    ours       the same requests, made and hashed inside the timed part, through the trainer's stream, each converted to
               a rollout with its steps and text

streaming, at hidden size 96 and 3 layers, where a step costs about the same for few and for many sequences, as on a
GPU. A rollout and two critiques of it have about the same number of tokens each:

    streamed   each rollout's critiques as soon as it is complete
    in two     the same requests; the critiques after the last rollout
    + LoRA     the same two arms; rollouts use an adapter of rank 8, critiques its base

loop: four steps of GRPO and of CAPO with LoRA at the larger size. The loop's own time is the time of a step outside the
engine's steps, the pushes and the learner.

A request's answer depends only on its seed, so compared arms decode the same tokens except for rounding (the numbers of
tokens are checked). Rollouts end by themselves or at a limit drawn from a log-normal: a few are many times as long as
the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.machine import about
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config, CriticConfig, EngineConfig, LoraConfig, RolloutConfig
from capo_fast.credit.critique_prompt import load_template
from capo_fast.engine.vllm import VllmEngine
from capo_fast.policy.lora import adapter_files, add_adapter
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Prompt, Request
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.stream import Stream
from capo_fast.runlog.recorder import read_metrics
from capo_fast.runtime.ranks import ranks
from capo_fast.tiny.task import draw_question

TINY = "pkg://capo_fast.tiny/model"
PROMPTS, N = 8, 8
CONFIG = Config(
    lora=LoraConfig(rank=8),
    rollout=RolloutConfig(prompts=PROMPTS, n=N, temperature=1.0, top_p=1.0, max_tokens=512),
    critic=CriticConfig(votes=2, temperature=1.0, top_p=1.0, max_tokens=64),
    engine=EngineConfig(dtype="float32", max_model_len=1536, max_num_seqs=64, kv_cache_gb=1.0, enforce_eager=True),
)


class Work:
    """The same requests for every arm."""

    def __init__(self, tokenizer: Any) -> None:
        self.sampler = RequestBuilder(tokenizer, load_template("tiny"), CONFIG)
        draw = random.Random(0)
        questions = [draw_question(draw) for _ in range(PROMPTS)]
        ids = [tuple(tokenizer.encode(question + "\n", add_special_tokens=False)) for question in questions]
        self.prompts = [Prompt(str(i), question, "", None, ids[i]) for i, question in enumerate(questions)]
        self.members = {f"rollout-1-{group}-{i}": (group, i) for group in range(PROMPTS) for i in range(N)}
        self.limits = {name: min(512, max(16, round(draw.lognormvariate(4.2, 0.9)))) for name in self.members}

    def requests(self) -> list[Request]:
        made = [self.sampler.rollout_request(self.prompts[g], g, i, 1) for g, i in self.members.values()]
        return [replace(request, max_tokens=self.limits[request.id]) for request in made]


SIZES = {
    "large": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "small": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3},
}


def make_model(folder: Path, size: str) -> dict[str, bytes]:
    """Write a random model and the embedded tokenizer to `folder`; returns the PEFT files of a random adapter."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TINY))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "max_position_embeddings": 2048}
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES[size], **ends, num_key_value_heads=1, vocab_size=64))
    model.save_pretrained(folder)
    add_adapter(model, CONFIG.lora, seed=0)
    adapter = {
        name.replace(".default.weight", ".weight"): torch.randn_like(weight) * 0.02
        for name, weight in model.state_dict().items()
        if ".lora_" in name
    }
    return adapter_files(model, adapter)


def bare(engine: VllmEngine, work: Work) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    requests = work.requests()
    prompts = [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests]
    settings = [
        SamplingParams(temperature=1.0, seed=request.seed, max_tokens=request.max_tokens, logprobs=0, detokenize=False)
        for request in requests
    ]
    start = time.perf_counter()
    outputs = engine._llm.generate(prompts, settings, use_tqdm=False)  # the LLM that the engine wraps
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}


def ours(engine: VllmEngine, work: Work) -> dict[str, Any]:
    start = time.perf_counter()
    stream = Stream(engine, engine)
    for request in work.requests():
        stream.add_rollout(request)
    while stream.rollouts:
        for completion in stream.advance():
            group, i = work.members[completion.id]
            work.sampler.read_rollout(completion, work.prompts[group], group, i, 0)
    return {"seconds": time.perf_counter() - start, "tokens": stream.traffic.rollout_tokens}


def critiqued(engine: VllmEngine, work: Work, streamed: bool, adapter: bool) -> dict[str, Any]:
    start = time.perf_counter()
    stream = Stream(engine, engine)
    for request in work.requests():
        stream.add_rollout(replace(request, base=not adapter))
    held = []
    while stream.rollouts or stream.critiques or held:
        for completion in stream.advance():
            if completion.id in work.members:
                group, i = work.members[completion.id]
                held.append(work.sampler.read_rollout(completion, work.prompts[group], group, i, 0))
        if streamed or not stream.rollouts:
            stream.add_critiques([each for rollout in held for each in work.sampler.critique_requests(rollout)])
            held = []
    traffic = stream.traffic
    return {
        "seconds": time.perf_counter() - start,
        "tokens": traffic.rollout_tokens + traffic.critique_tokens,
        "overlap": traffic.overlapped_tokens / traffic.critique_tokens,
        "idle": traffic.idle_seconds,
        "cached": traffic.critique_cached_tokens / traffic.critique_prompt_tokens,
    }


PARTS = {
    "throughput": ("large", {"bare": bare, "ours": ours}),
    "streaming": (
        "small",
        {
            "streamed": partial(critiqued, streamed=True, adapter=False),
            "in two": partial(critiqued, streamed=False, adapter=False),
            "streamed + LoRA": partial(critiqued, streamed=True, adapter=True),
            "in two + LoRA": partial(critiqued, streamed=False, adapter=True),
        },
    ),
}


def measure(part: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """`rounds` rounds of every arm after a warm-up round."""
    size, arms = PARTS[part]
    lora = CONFIG.lora if part == "streaming" else None
    with tempfile.TemporaryDirectory() as name, ranks():
        files = make_model(Path(name), size)
        engine = VllmEngine(name, CONFIG.engine, lora)
        if lora:
            engine.load_adapter(files)
        work = Work(load_tokenizer(name))
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for number in range(rounds + 1):
            order = list(arms)
            for arm in order[number % len(order) :] + order[: number % len(order)]:
                engine._llm.reset_prefix_cache()
                found[arm].append(arms[arm](engine, work))
                print(f"round {number} of {rounds}, {arm}: {found[arm][-1]}", file=sys.stderr, flush=True)
        engine.close()
    return {arm: results[1:] for arm, results in found.items()}


def child(part: str, rounds: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    """Run `measure` in a separate process."""
    command = [sys.executable, "-m", "bench.trainer.engine", "--part", part, "--rounds", str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout.splitlines()[-1]
    )


def ratios(found: dict[str, list[dict[str, Any]]], arm: str, base: str) -> list[float]:
    """Ratios of tokens per second, one per round; exits if the arms' numbers of tokens differ by over 1 %."""
    pairs = list(zip(found[arm], found[base], strict=True))
    if any(abs(one["tokens"] / other["tokens"] - 1) > 0.01 for one, other in pairs):
        sys.exit(f"{arm} and {base} decoded different numbers of tokens")
    return [one["tokens"] / one["seconds"] / (other["tokens"] / other["seconds"]) for one, other in pairs]


LOOPS = {
    "grpo": {"algorithm": "grpo"},
    "capo, LoRA": {"lora.rank": 8, "train.lr": 1e-3},
}
LOOP = {
    "rollout.prompts": 8,
    "rollout.n": 8,
    "rollout.max_tokens": 256,
    "engine.max_model_len": 1024,
    "engine.kv_cache_gb": 1.0,
    "engine.max_num_seqs": 64,
    "train.micro_tokens": 4096,
}


def loop(settings: dict[str, Any], threads: int, steps: int = 4) -> list[dict[str, float]]:
    """Seconds of each training step after the first, by part."""
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name, "base"), "large")
        words = [f"--{key}={value}" for key, value in (LOOP | settings | {"model.path": f"{name}/base"}).items()]
        command = [sys.executable, "-m", "bench.end_to_end.capo_arm", name, f"--train.steps={steps + 1}", *words]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=sys.stderr)
        walls = [sum(step["seconds"].values()) for step in json.loads(Path(name, "arm.json").read_text())["steps"]]
        lines = read_metrics(Path(name, "run", "metrics.jsonl"))
    found = []
    for line, wall in list(zip(lines, walls, strict=True))[1:]:
        parts = {"engine": line["engine/busy_s"], "learner": line["time/learn"], "push": line["time/sync"]}
        found.append({**parts, "step": wall, "own share": 1 - sum(parts.values()) / wall})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--part", choices=PARTS, help="run one part in this process")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.rounds)))
        return
    found = {part: child(part, options.rounds, options.threads) for part in PARTS}
    loops = {name: loop(settings, options.threads) for name, settings in LOOPS.items()}
    streaming = found["streaming"]
    summary = {
        "ours, of bare vLLM's tokens/s": ratios(found["throughput"], "ours", "bare"),
        "streamed, of in two": ratios(streaming, "streamed", "in two"),
        "streamed + LoRA, of in two + LoRA": ratios(streaming, "streamed + LoRA", "in two + LoRA"),
    }
    for name, values in summary.items():
        print(f"{name}: {median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
    for name, rounds in (streaming | loops).items():
        print(f"{name}:", {key: round(median(one[key] for one in rounds), 4) for key in rounds[0]})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        results = about(options.threads) | {"ratios": summary, "rounds": found, "loops": loops}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
