"""One arm of bench.end_to_end, TRL's GRPOTrainer: `python -m bench.end_to_end.trl_arm FOLDER [options] [settings]`.

All settings come from capo_fast's configuration of the same run; `--changes` override them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # TRL imports an installed vLLM, which takes ten seconds; this arm does not use it.
    sys.modules["vllm"] = None  # type: ignore[assignment]

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.end_to_end.arms import arm_config
from bench.end_to_end.laps import Laps
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.loaders import load_prompts, load_reward_functions
from capo_fast.policy.model import DTYPES, load_model
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Prompt
from capo_fast.verify.functions import RewardFunction, item_of
from capo_kernels.adapters.trl import CapoLossMixin


class TimedTrainer(GRPOTrainer):
    """TRL's trainer with timed stages and unchanged behaviour."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.laps = Laps()
        self.seen: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self.laps("rest"):
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        with self.laps("rollout"):
            result = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.seen |= {"prompt_ids": prompt_ids, "tokens": sum(map(len, result[0])), "rollouts": len(result[0])}
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.laps("verify"):
            rewards = super()._calculate_rewards(*args, **kwargs)
        self.seen["pass_rate"] = rewards.mean().item()
        return rewards

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self.laps("learn"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)


class TimedCapoTrainer(CapoLossMixin, TimedTrainer):
    """The same with the loss of capo_kernels."""


class Steps(TrainerCallback):
    """Records each step, which is all updates of one batch of rollouts. Exits if TRL's prompts are not ours."""

    def __init__(self, prompts: list[Prompt], config: Config) -> None:
        self.prompts, self.config = prompts, config
        self.trainer: TimedTrainer | None = None
        self.found: list[dict[str, Any]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.laps.lap()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.laps.enter("learn")

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        self.trainer.laps.leave()
        if state.global_step % (self.config.train.minibatches * self.config.train.epochs) == 0:
            prompt_ids = self.trainer.seen.pop("prompt_ids")
            self.check([tuple(ids) for ids in prompt_ids])
            self.found.append({"seconds": self.trainer.laps.lap(), **self.trainer.seen})

    def check(self, prompt_ids: list[tuple[int, ...]]) -> None:
        count, n = self.config.rollout.prompts, self.config.rollout.n
        ours = self.prompts[len(self.found) * count :][:count]
        if prompt_ids != [prompt.token_ids for prompt in ours for _ in range(n)]:
            raise SystemExit(f"step {len(self.found) + 1}: TRL's prompts are not those of capo_fast's run")


def reward_of(function: RewardFunction, drawn: Sequence[Prompt]) -> Callable[..., list[float]]:
    """A run's reward function with TRL's signature; `number` is the prompt's index among those drawn."""

    def reward(completions: Any, number: Sequence[int], **unused: Any) -> list[float]:
        texts, prompts = [chat[0]["content"] for chat in completions], [drawn[place] for place in number]
        items = [item_of(text, each, each.columns, True) for text, each in zip(texts, prompts, strict=True)]
        return [float(value) for value in function(items)]

    return reward


def messages(prompt: Prompt, config: Config) -> list[dict[str, str]]:
    system = config.data.system_prompt
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": prompt.problem}]


LOSS_TYPES = {"sequence-mean": "grpo", "token-mean": "dapo", "constant": "dr_grpo"}
"""TRL's names of `loss.aggregation`."""


def grpo_settings(config: Config, folder: Path) -> dict[str, Any]:
    """capo_fast's settings under TRL's names; all others have TRL's defaults."""
    rollout, train, loss = config.rollout, config.train, config.loss
    return {
        "output_dir": str(folder / "run"),
        "max_steps": train.steps * train.minibatches * train.epochs,
        "per_device_train_batch_size": rollout.prompts * rollout.n // train.minibatches,
        "generation_batch_size": rollout.prompts * rollout.n,
        "num_iterations": train.epochs,
        "num_generations": rollout.n,
        "max_completion_length": rollout.max_tokens,
        "chat_template_kwargs": config.data.template_kwargs,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "learning_rate": train.lr,
        "lr_scheduler_type": train.schedule,
        "adam_beta1": train.betas[0],
        "adam_beta2": train.betas[1],
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.grad_clip,
        "loss_type": LOSS_TYPES[loss.aggregation],
        "epsilon": loss.clip_low,
        "epsilon_high": loss.clip_high,
        "beta": loss.kl_coef,
        "seed": config.seed,
        "shuffle_dataset": False,
        "use_vllm": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": config.policy.gradient_checkpointing,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def grpo_config(config: Config, folder: Path, fixed: bool, changes: dict[str, Any]) -> GRPOConfig:
    """fixed: every response has rollout.max_tokens tokens. An update has the same rollouts for every batch size:
    gradients of smaller batches are accumulated."""
    settings = grpo_settings(config, folder)
    update = settings["per_device_train_batch_size"]
    if fixed:
        settings["generation_kwargs"] = {"min_new_tokens": config.rollout.max_tokens}
    settings |= changes
    settings["gradient_accumulation_steps"] = max(1, update // settings["per_device_train_batch_size"])
    return GRPOConfig(**settings)


def run(config: Config, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    model_path, function = resolve_model(config.model.path), load_reward_functions(config.reward)[0]
    tokenizer = load_tokenizer(model_path)
    drawn, _ = load_prompts(config, tokenizer, [function]).take(0, config.train.steps * config.rollout.prompts)
    rows = [{"prompt": messages(prompt, config), "number": place} for place, prompt in enumerate(drawn)]
    steps = Steps(drawn, config)
    kind = TimedCapoTrainer if options.loss == "capo" else TimedTrainer
    trainer = kind(
        load_model(model_path, config.policy.attention, dtype=DTYPES[options.dtype]),
        reward_of(function, drawn),
        grpo_config(config, folder, options.fixed, options.changes),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[steps],
    )
    steps.trainer = trainer
    trainer.train()
    loss = "capo_kernels.adapters.trl" if kind is TimedCapoTrainer else "TRL"
    return {"steps": steps.found, "loss": loss, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fixed", action="store_true", help="every response has rollout.max_tokens tokens")
    parser.add_argument("--loss", choices=("trl", "capo"), default="trl")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights")
    parser.add_argument("--changes", type=json.loads, default={}, help="fields of GRPOConfig, as JSON")
    options, words = parser.parse_known_args()
    found = run(arm_config(options.folder, words), options.folder, options)
    Path(options.folder, "arm.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
