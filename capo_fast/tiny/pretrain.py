"""Generate the embedded default: data files, tokenizer, a model that is both policy and critic, and a critic of steps.

One net learns both skills. Half of each batch are worked solutions with the world's misconceptions, half are critiques
with the true verdicts; the loss is on completions alone. A second net of the same shape learns to judge single steps.
The same seed and thread count give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from capo_fast.tiny.critique import critique_prompt, critique_text, step_critique_text
from capo_fast.tiny.task import BLANK, MIN_OPS, World, answer, corrupt_solution, draw_question, right_steps
from capo_fast.tiny.tokenizer import VOCABULARY, build_tokenizer

STEPS, WARMUP, RATE, FLOOR = 1400, 30, 4e-3, 0.05
CHUNK = 16
TRAIN_PROBLEMS, HELDOUT_PROBLEMS = 4096, 400
IGNORE = -100
Example = tuple[str, str]
"""A user message and the target completion."""
Skills = Mapping[Callable[[Random, World], Example], int]
"""Generators of examples, with the number of each in a batch."""


def build_model(seed: int) -> Qwen2ForCausalLM:
    """A fresh Qwen2 of 302,208 parameters."""
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4}, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=math.sqrt(0.5 / config.hidden_size))
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=2 / math.sqrt(config.hidden_size))
    return model


def solution_example(rng: Random, world: World) -> Example:
    """A question and a worked solution with the world's misconceptions."""
    question = draw_question(rng)
    return question, BLANK.join(world.solution(rng, question))


def critique_example(rng: Random, world: World) -> Example:
    """A solution, half of them short, half of them corrupted at random, and its true critique."""
    question = draw_question(rng, 1, MIN_OPS) if rng.random() < 0.5 else draw_question(rng)
    steps = corrupt_solution(rng, question) if rng.random() < 0.5 else world.solution(rng, question)
    return critique_prompt(question, steps), critique_text(question, steps)


def step_critique_example(rng: Random, world: World) -> Example:
    """A solution up to one of its steps, half of them corrupted at random, and the true critique of that step."""
    question = draw_question(rng)
    steps = corrupt_solution(rng, question) if rng.random() < 0.5 else world.solution(rng, question)
    shown = steps[: rng.randint(1, len(steps))]
    return critique_prompt(question, shown), step_critique_text(question, shown)


SOLVING_AND_CRITIQUES: Skills = {solution_example: 24, critique_example: 24}
CRITIQUES_OF_STEPS: Skills = {step_critique_example: 64}


def encode(tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets [B, N], padded on the right; prompts and padding carry no target."""
    rows, cuts = [], []
    for message, completion in examples:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": message}], return_dict=False)
        rows.append([*prompt, *tokenizer.encode(completion), tokenizer.eos_token_id])
        cuts.append(len(prompt))
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    place = torch.arange(width)
    outside = (place < torch.tensor(cuts)[:, None]) | (place >= torch.tensor([len(row) for row in rows])[:, None])
    return ids, ids.masked_fill(outside, IGNORE)


def completion_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy of the completions' tokens. Padding is on the right: no attention mask is needed."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def backward(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    """Gradients of the mean loss per token; returns the mean. Chunks have similar lengths, which saves padding."""
    examples = sorted(examples, key=lambda example: len(example[0]))
    chunks = [encode(tokenizer, examples[i : i + CHUNK]) for i in range(0, len(examples), CHUNK)]
    tokens, total = sum(int((targets != IGNORE).sum()) for _, targets in chunks), 0.0
    for ids, targets in chunks:
        loss = completion_loss(model, ids, targets) / tokens
        loss.backward()
        total += loss.item()
    return total


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 5 %."""
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return RATE * min((step + 1) / WARMUP, FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * max(0.0, done))))


def pretrain(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, skills: Skills, steps: int, seed: int
) -> list[float]:
    """Train in place; the loss of every step."""
    world, rng, losses = World.from_seed(seed), Random(f"pretraining {seed}"), []
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        examples = [make(rng, world) for make, count in skills.items() for _ in range(count)]
        optimizer.zero_grad()
        losses.append(backward(model, tokenizer, examples))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {losses[-1]:.3f}", flush=True)
    return losses


def problems(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The training and the held-out problems: all different."""
    rng = Random(f"problems {seed}")
    questions: dict[str, None] = {}  # in order of the draw, without duplicates
    while len(questions) < TRAIN_PROBLEMS + HELDOUT_PROBLEMS:
        questions[draw_question(rng)] = None
    heldout, train = list(questions)[:HELDOUT_PROBLEMS], list(questions)[HELDOUT_PROBLEMS:]
    return [record(f"tiny-{i}", q) for i, q in enumerate(train)], [
        record(f"tiny-heldout-{i}", q) for i, q in enumerate(heldout)
    ]


def record(name: str, question: str) -> dict[str, str]:
    """One line of a data file."""
    return {
        "id": name,
        "problem": question,
        "answer": answer(question),
        "solution": BLANK.join(right_steps(question)),
    }


def write_problems(folder: Path, seed: int) -> None:
    """`train.jsonl.gz` and `heldout.jsonl`."""
    train, heldout = ("".join(json.dumps(row) + "\n" for row in rows).encode() for rows in problems(seed))
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(train, mtime=0))
    (folder / "heldout.jsonl").write_bytes(heldout)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A Hugging Face checkpoint in bf16."""
    model.to(torch.bfloat16).save_pretrained(folder)
    GenerationConfig(do_sample=True, temperature=1.0, pad_token_id=0, eos_token_id=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "model.safetensors").chmod(0o644)  # else readable only by its owner


def make(folder: Path, steps: int = STEPS, seed: int = 0) -> dict[str, list[float]]:
    """Make every file of the embedded default under `folder`; the losses of the pretraining, by model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_problems(folder, seed)
    return {name: make_model(folder / name, skills, steps, seed) for name, skills in MODELS.items()}


MODELS = {"model": SOLVING_AND_CRITIQUES, "critic": CRITIQUES_OF_STEPS}


def make_model(folder: Path, skills: Skills, steps: int, seed: int) -> list[float]:
    """Pretrain one model into its folder; its losses."""
    model, tokenizer = build_model(seed), build_tokenizer()
    losses = pretrain(model, tokenizer, skills, steps, seed)
    save(model, tokenizer, folder)
    return losses
