"""A tiny model, TRL's trainer with and without the mixin, and batches in that trainer's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trl.import_utils as trl_imports

# TRL imports vLLM if it is installed: ten seconds, and nothing here generates with it.
trl_imports.is_vllm_available = lambda *args, **kwargs: False

from covering import covering  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from capo_kernels.adapters.trl import CapoLossMixin  # noqa: E402

VOCAB, SEQUENCES, PROMPT, COMPLETION = 60, 4, 3, 6


class CapoTrainer(CapoLossMixin, GRPOTrainer):
    pass


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def save_model(folder: Path) -> str:
    """Save a model with weights large enough that log-probs and entropies differ between tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCAB, num_key_value_heads=1, initializer_range=0.3, pad_token_id=0, **sizes)
    config.tie_word_embeddings = False
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(sum(len(word) for word in completion.split()) % 5) for completion in completions]


def make_trainer(kind: type[GRPOTrainer], model: Any, folder: Path, **settings: Any) -> GRPOTrainer:
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=SEQUENCES,
        num_generations=2,
        max_completion_length=COMPLETION + 2,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(2, 10)]})
    return kind(model, reward, args, train_dataset=prompts, processing_class=make_tokenizer())


@dataclass(frozen=True)
class Setting:
    loss_type: str
    level: str
    beta: float = 0.0
    delta: float | None = None

    def apply(self, trainer: GRPOTrainer) -> None:
        trainer.loss_type, trainer.importance_sampling_level = self.loss_type, self.level
        trainer.beta, trainer.args.delta = self.beta, self.delta
        trainer.epsilon_low, trainer.epsilon_high = 0.2, 1.5 if self.loss_type == "cispo" else 0.3


LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo")
SETTINGS = [Setting(*x) for x in covering(LOSS_TYPES, ("token", "sequence"), (0.0, 0.5), (None, 1.5))]


def make_inputs(trainer: GRPOTrainer, seed: int) -> dict[str, Any]:
    """Completions of different lengths, one with tool output in between; old log-probs so far off that ratios clip."""
    g = torch.Generator().manual_seed(seed)
    prompt_mask = torch.ones(SEQUENCES, PROMPT).long()
    prompt_mask[1, 0] = 0
    completion_mask = (torch.arange(COMPLETION) < torch.tensor([6, 2, 4, 5])[:, None]).long()
    tool_mask = torch.ones(SEQUENCES, COMPLETION).long()
    tool_mask[3, 1:3] = 0
    inputs = {
        "prompt_ids": torch.randint(2, VOCAB, (SEQUENCES, PROMPT), generator=g) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(2, VOCAB, (SEQUENCES, COMPLETION), generator=g) * completion_mask,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor([1.0, -0.7, -1.2, 0.4]),
        "num_items_in_batch": torch.tensor(61),
    }
    with torch.no_grad():
        logp, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([prompt_mask, completion_mask], dim=1),
            COMPLETION,
        )
    # Sequence ratios too: the first is clipped above, the second below, the third by delta, the fourth not.
    shift = torch.tensor([-0.5, 0.4, -0.8, 0.3])[:, None]
    for name, by in (("old_per_token_logps", shift), ("ref_per_token_logps", 0.0)):
        inputs[name] = logp + by + 0.4 * torch.randn(logp.shape, generator=g)
    return inputs


def advantage_per_token(seed: int = 0) -> torch.Tensor:
    return torch.randn(SEQUENCES, COMPLETION, generator=torch.Generator().manual_seed(seed))


@dataclass
class Outcome:
    loss: torch.Tensor
    grad: torch.Tensor
    metrics: dict[str, float]


def run(
    trainer: GRPOTrainer,
    setting: Setting,
    inputs: dict[str, Any],
    model: torch.nn.Module | None = None,
    mode: str = "train",
) -> Outcome:
    """One call of compute_loss and its gradient by all trained weights. model: the trainer's model, wrapped."""
    setting.apply(trainer)
    trainer.model.train(mode == "train")
    trainer.current_gradient_accumulation_steps, trainer.args.steps_per_generation = 2, 4
    trainer.model.zero_grad(set_to_none=True)
    trainer._metrics[mode].clear()
    loss = trainer.compute_loss(trainer.model if model is None else model, inputs)
    loss.backward()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    grad = torch.cat([parameter.grad.flatten().double() for parameter in trained])
    return Outcome(loss.detach(), grad, {name: values[-1] for name, values in trainer._metrics[mode].items()})


def difference(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """Differences relative to the loss's scale and the gradient's norm, and the largest difference of a metric."""
    if ours.metrics.keys() != theirs.metrics.keys():
        raise AssertionError(f"metrics: {sorted(ours.metrics)} against {sorted(theirs.metrics)}")
    pairs = torch.tensor([[value, theirs.metrics[name]] for name, value in ours.metrics.items()])
    return {
        "loss": (ours.loss - theirs.loss).abs().item() / max(1.0, theirs.loss.abs().item()),
        "gradient": ((ours.grad - theirs.grad).norm() / theirs.grad.norm()).item(),
        "metrics": (pairs[:, 0] - pairs[:, 1]).abs().max().item(),
    }
