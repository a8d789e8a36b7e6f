"""The tiny world without vLLM: a scripted engine whose answers depend only on each request's prompt and seed.

Its answers do not depend on the weights; its `score` does (through transformers), so the canary is the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import torch
from scripted_engine import ScriptedEngine
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.records import Completion, Request
from capo_fast.tiny.critique import critique_text, step_critique_text
from capo_fast.tiny.task import World

MODEL = resolve_model("pkg://capo_fast.tiny/model")
SMALL = {
    "--rollout.prompts": "4",
    "--rollout.n": "4",
    "--eval.limit": "8",
    "--checkpoint.every": "2",
    "--reward.fn": "reward_functions:tiny_answer",
}


def small_arguments(*arguments: str) -> list[str]:
    """The flags of a quick run. `arguments` (`--key value` pairs) replace or extend them."""
    pairs = SMALL | dict(zip(arguments[::2], arguments[1::2], strict=True))
    return [word for pair in pairs.items() for word in pair]


def scripted_config(*arguments: str):
    return load_config(small_arguments(*arguments))


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def scripted_engine() -> ScriptedEngine:
    return ScriptedEngine(answer, scorer=score_with(MODEL))


def answer(request: Request) -> Completion:
    """A solution with about every fifth step wrong, or the true critique of one."""
    question, steps = shown(request)
    if steps:
        text = critique_text(question, steps)
    else:
        text = "\n\n".join(World.from_seed(7).solution(Random(request.seed), question))
    token_ids = (*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id)[: request.max_tokens]
    finished = token_ids[-1] == tokenizer().eos_token_id
    text = tokenizer().decode(token_ids, skip_special_tokens=True)
    return Completion(request.id, tuple(token_ids), (-0.5,) * len(token_ids), text, finished)


def shown(request: Request) -> tuple[str, list[str]]:
    """The question, and for a critique request the steps in its prompt."""
    question, _, solution = tokenizer().decode(request.prompt_ids).strip().partition("\n")
    return question, [piece.split(">")[-1] for piece in solution.split("</step_")[:-1]]


def answer_steps(request: Request) -> Completion:
    """Like `answer`, but a critique judges only the last step in its prompt, truly, and uses all its tokens."""
    question, steps = shown(request)
    if not steps:
        return answer(request)
    return Completion(request.id, (1,) * request.max_tokens, (), step_critique_text(question, steps), False)


def score_with(model_path: str):
    """Log-probs under the engine's current weights."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path), dtype=torch.float32).eval()

    @torch.no_grad()
    def score(weights: dict[str, torch.Tensor], sequence: Sequence[int]) -> list[float]:
        model.load_state_dict(weights)
        ids = torch.tensor([sequence])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        return logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()

    return score
