"""Sample from a checkpoint and score its solutions and critiques by the rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from capo_fast.tiny.task import BLANK, answer, stated_answer, true_wrong_steps

SOLUTION_TOKENS, CRITIQUE_TOKENS = 48, 96


def load(folder: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """A checkpoint in float32 and its tokenizer."""
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def sample(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, messages: list[str], max_tokens: int, seed: int
) -> list[str | None]:
    """One completion per message at temperature 1, all in one batch; None if the length limit cut it."""
    chats = [[{"role": "user", "content": message}] for message in messages]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids, mask, cache = batch["input_ids"], batch["attention_mask"], DynamicCache(config=model.config)
    generator, ended = torch.Generator().manual_seed(seed), torch.zeros(len(messages), dtype=torch.bool)
    columns: list[torch.Tensor] = []
    while len(columns) < max_tokens and not ended.all():
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, -1]
        ids = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        columns.append(ids)
        ended |= ids[:, 0] == tokenizer.eos_token_id
    return [until_end(tokenizer, row) for row in torch.cat(columns, 1).tolist()]


def until_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str | None:
    """The text before the end-of-sequence token, None without one."""
    end = tokenizer.eos_token_id
    return tokenizer.decode(ids[: ids.index(end)]) if end in ids else None


def cut(text: str | None) -> list[str]:
    """The steps of a solution."""
    return [step for step in (text or "").split(BLANK) if step.strip()]


@dataclass(frozen=True)
class PolicyFigures:
    """Scores of a set of sampled solutions."""

    pass_at_1: float
    wrong_steps: float
    """Share of all steps."""
    cut_short: float
    """Share of solutions without an end."""


def policy_figures(questions: list[str], solutions: list[str | None]) -> PolicyFigures:
    """Judge one sampled solution per question by the rule."""
    steps = [cut(text) for text in solutions]
    right = sum(stated_answer(s) == answer(q) for q, s in zip(questions, steps, strict=True))
    wrong = sum(len(true_wrong_steps(q, s)) for q, s in zip(questions, steps, strict=True))
    cut_short = sum(text is None for text in solutions)
    return PolicyFigures(right / len(questions), wrong / max(1, sum(map(len, steps))), cut_short / len(questions))


@dataclass(frozen=True)
class CriticFigures:
    """Scores of a set of verdicts on steps; abstentions (None) are left out."""

    precision: float
    recall: float
    abstained: float


def critic_figures(truth: list[frozenset[int]], verdicts: list[frozenset[int] | None]) -> CriticFigures:
    """Scores at finding wrong steps, over all solutions with a verdict."""
    judged = [(t, v) for t, v in zip(truth, verdicts, strict=True) if v is not None]
    found = sum(len(t & v) for t, v in judged)
    named, there = sum(len(v) for _, v in judged), sum(len(t) for t, _ in judged)
    return CriticFigures(found / max(1, named), found / max(1, there), 1 - len(judged) / len(truth))
