"""What the trainer's way of driving vLLM costs, and what streaming critiques gains.

    python -m bench.engine [--rounds 5] [--threads N] [--json FILE]

One in-process vLLM with a random Qwen2 (hidden 512, 8 layers: large enough for the engine to dominate on a CPU) in
float32 and a LoRA adapter of rank 8. Arms take turns in every round:

    bare       `vllm.LLM.generate` on the rollouts' prompts with their seeds, limits and log-probs, no detokenization;
               its prompts and parameters are made before the clock starts
    ours       the same requests, made and hashed on the clock, through the trainer's stream, each read into a rollout
               with its steps and text
    streamed   rollouts by the adapter; each one's critiques by the base as soon as it has ended
    in two     the same requests; the critiques after the last rollout

After them the whole loop trains the same model, four steps of GRPO and of CAPO under LoRA, each in its own process:
what a step spends outside the engine's steps, the pushes and the learner is the loop's own.

A request's answer depends on its seed alone, so arms that are compared decode the same tokens, but for rounding
(their numbers are checked). Rollouts end
by themselves or at a limit drawn from a log-normal: a few are many times as long as the rest.
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
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.end_to_end import about
from capo_fast.config import Config, CriticConfig, EngineConfig, LoraConfig, RolloutConfig
from capo_fast.credit.critic import load_template
from capo_fast.engine.vllm import VllmEngine
from capo_fast.generation import Stream
from capo_fast.lora import adapter_files, add_adapter
from capo_fast.metrics import read_metrics
from capo_fast.paths import resolve_model
from capo_fast.records import Prompt, Request
from capo_fast.runtime import ranks
from capo_fast.sampling import Sampler
from capo_fast.tiny.task import draw_question

TINY = "pkg://capo_fast.tiny/model"
PROMPTS, N = 12, 8
CONFIG = Config(
    lora=LoraConfig(rank=8),
    rollout=RolloutConfig(prompts=PROMPTS, n=N, temperature=1.0, top_p=1.0, max_tokens=512),
    critic=CriticConfig(votes=2, temperature=1.0, top_p=1.0, max_tokens=64),
    engine=EngineConfig(dtype="float32", max_model_len=1536, max_num_seqs=64, kv_cache_gb=1.0, enforce_eager=True),
)


class Work:
    """The same requests for every arm."""

    def __init__(self, tokenizer: Any) -> None:
        self.sampler = Sampler(tokenizer, load_template("tiny"), CONFIG)
        draw = random.Random(0)
        questions = [draw_question(draw) for _ in range(PROMPTS)]
        ids = [tuple(tokenizer.encode(question + "\n", add_special_tokens=False)) for question in questions]
        self.prompts = [Prompt(str(i), question, "", None, ids[i]) for i, question in enumerate(questions)]
        self.members = {f"rollout-1-{group}-{i}": (group, i) for group in range(PROMPTS) for i in range(N)}
        self.limits = {name: min(512, max(16, round(draw.lognormvariate(4.2, 0.9)))) for name in self.members}

    def requests(self) -> list[Request]:
        asked = [self.sampler.rollout_request(self.prompts[g], g, i, 1) for g, i in self.members.values()]
        return [replace(request, max_tokens=self.limits[request.id]) for request in asked]


def make_model(folder: Path) -> dict[str, bytes]:
    """The random model in `folder`, with the embedded tokenizer; returns a random adapter for it, PEFT's files."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TINY))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, eos_token_id=tokenizer.eos_token_id, bos_token_id=None))
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
    llm, adapter = engine._llm, engine._adapter  # the peer is what the engine wraps
    start = time.perf_counter()
    outputs = llm.generate(prompts, settings, use_tqdm=False, lora_request=adapter)
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
            work.sampler.read_rollout(completion, work.prompts[group], group, i, 1)
    return {"seconds": time.perf_counter() - start, "tokens": stream.traffic.rollout_tokens}


def critiqued(engine: VllmEngine, work: Work, streamed: bool) -> dict[str, Any]:
    start = time.perf_counter()
    stream = Stream(engine, engine)
    for request in work.requests():
        stream.add_rollout(request)
    held = []
    while stream.rollouts or stream.critiques or held:
        for completion in stream.advance():
            if completion.id in work.members:
                group, i = work.members[completion.id]
                held.append(work.sampler.read_rollout(completion, work.prompts[group], group, i, 1))
        if streamed or not stream.rollouts:
            for rollout in held:
                for request in work.sampler.critique_requests(rollout):
                    stream.add_critique(request)
            held = []
    traffic = stream.traffic
    return {
        "seconds": time.perf_counter() - start,
        "tokens": traffic.rollout_tokens + traffic.critique_tokens,
        "overlap": traffic.overlapped_tokens / traffic.critique_tokens,
        "idle": traffic.idle_seconds,
        "cached": traffic.critique_cached_tokens / traffic.critique_prompt_tokens,
    }


RUN = {
    "bare": bare,
    "ours": ours,
    "streamed": lambda engine, work: critiqued(engine, work, True),
    "in two": lambda engine, work: critiqued(engine, work, False),
}


def measure(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """`rounds` of every arm after one that warms up."""
    with tempfile.TemporaryDirectory() as name, ranks():
        files = make_model(Path(name))
        engine = VllmEngine(name, CONFIG.engine, CONFIG.lora)
        engine.load_adapter(files)
        work = Work(engine._tokenizer)
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in RUN}
        for number in range(rounds + 1):
            arms = list(RUN)
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                engine._llm.reset_prefix_cache()
                found[arm].append(RUN[arm](engine, work))
                print(f"round {number} of {rounds}, {arm}: {found[arm][-1]}", flush=True)
        engine.close()
    return {arm: seen[1:] for arm, seen in found.items()}


def ratios(found: dict[str, list[dict[str, Any]]], arm: str, base: str) -> list[float]:
    """Of tokens a second, round by round; ends the command where the arms' work differs by over 1 %."""
    pairs = list(zip(found[arm], found[base], strict=True))
    if any(abs(one["tokens"] / other["tokens"] - 1) > 0.01 for one, other in pairs):
        sys.exit(f"{arm} and {base} decoded unequal numbers of tokens")
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
    """Seconds of each training step but the first, by whose they are."""
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name, "base"))
        words = [f"--{key}={value}" for key, value in (LOOP | settings | {"model.path": f"{name}/base"}).items()]
        command = [sys.executable, "-m", "bench.end_to_end_capo", str(steps + 1), name, *words]
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.rounds)
    summary = {
        "tokens/s of bare vLLM": ratios(found, "ours", "bare"),
        "streamed over in two": ratios(found, "streamed", "in two"),
    }
    for name, values in summary.items():
        print(f"{name}: {median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
    loops = {name: loop(settings, options.threads) for name, settings in LOOPS.items()}
    for name, steps in loops.items():
        print(name, {key: round(median(step[key] for step in steps), 4) for key in steps[0]})
    for arm in ("streamed", "in two"):
        print(arm, {key: round(median(one[key] for one in found[arm]), 3) for key in found[arm][0]})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(about(options.threads) | {"ratios": summary, "rounds": found, "loops": loops}, indent=1)
        )


if __name__ == "__main__":
    main()
