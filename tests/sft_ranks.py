"""Fine-tuning on a few conversations: its settings, a learner, and one update on several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from learner_ranks import with_plain_gradient_steps
from scripted_world import MODEL, tokenizer
from torch.distributed.device_mesh import init_device_mesh

from capo_fast.config.load import build_kind
from capo_fast.config.sft import SftConfig
from capo_fast.data import ChatTemplate
from capo_fast.policy.loading import load_policy
from capo_fast.policy.model import full_weights
from capo_fast.runtime.ranks import ranks
from capo_fast.sft.conversations import Conversation
from capo_fast.sft.examples import AnswerTemplate, Example
from capo_fast.sft.learner import AnswerLearner

SETTINGS = {
    "model.path": "pkg://capo_fast.tiny/model",
    "policy.dtype": "float32",
    "data": {"path": "rows.jsonl", "system_prompt": None},
    "train": {"batch": 3, "lr": 1e-3, "grad_clip": 1e9, "micro_tokens": 40},
    "lora.alpha": 8.0,
}
CHATS = [
    (("user", "1+2"), ("assistant", "1+2=3\n\nA:3")),
    (("user", "2*3-4"), ("assistant", "2*3=6\n\n6-4=2\n\nA:2"), ("user", "5-1"), ("assistant", "A:4")),
    (("user", "9-9"), ("assistant", "A:0")),
    (("user", "7*2-9+9"), ("assistant", "7*2=14\n\n14-9=5\n\n5+9=14\n\nA:14")),
]


def sft_config(**changes) -> SftConfig:
    return build_kind(SftConfig, SETTINGS, {key.replace("__", "."): value for key, value in changes.items()})


def answer_template() -> AnswerTemplate:
    end = tokenizer().eos_token_id
    return AnswerTemplate(ChatTemplate(tokenizer()), frozenset([end]), end)


def examples() -> list[Example]:
    return [answer_template().example(Conversation("row", "", chat)) for chat in CHATS]


def make_learner(config: SftConfig) -> AnswerLearner:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = load_policy(MODEL, config.learning, torch.device("cpu"), mesh)
    return with_plain_gradient_steps(AnswerLearner(policy, None, config.learning))


def weights_of(learner: AnswerLearner) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in full_weights(learner.policy, torch.float32)}


def updated(config: SftConfig, given: list[Example]) -> tuple[dict[str, float], dict[str, torch.Tensor], float]:
    """Metrics and weights after one update, and the held-out loss before it."""
    learner = make_learner(config)
    held_out = learner.evaluate(given)
    return learner.fit(given), weights_of(learner), held_out.loss


def main(out: Path) -> None:
    with ranks():
        # Three examples: two ranks need a filler.
        metrics, weights, held_loss = updated(sft_config(train__micro_tokens=1), examples()[:3])
        if dist.get_rank() == 0:
            torch.save(weights, out)
            out.with_suffix(".json").write_text(json.dumps([metrics, held_loss]))
