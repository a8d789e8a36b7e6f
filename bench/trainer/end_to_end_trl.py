"""One arm of end_to_end.py, TRL's GRPOTrainer: `python -m bench.trainer.end_to_end_trl STEPS FOLDER trl|capo`.

`capo` takes the loss of `capo_kernels.adapters.trl`. All settings come from capo_fast's configuration of the same run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # TRL imports vLLM where it finds it: ten seconds, and nothing here generates with it.
    sys.modules["vllm"] = None  # type: ignore[assignment]

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.trainer.end_to_end import arm_config
from bench.trainer.laps import Laps
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.loaders import load_prompts
from capo_fast.policy.model import load_model
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Prompt
from capo_fast.verify.answers import answers_equal
from capo_kernels.adapters.trl import CapoLossMixin


class TimedTrainer(GRPOTrainer):
    """TRL's trainer with the time of its stages. What it does is TRL's alone."""

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
    """A step is what one batch of rollouts takes, all its updates. Raises where TRL's prompts are not ours."""

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
        if state.global_step % self.config.train.minibatches == 0:
            prompt_ids = self.trainer.seen.pop("prompt_ids")
            self.check([tuple(ids) for ids in prompt_ids])
            self.found.append({"seconds": self.trainer.laps.lap(), **self.trainer.seen})

    def check(self, prompt_ids: list[tuple[int, ...]]) -> None:
        count, n = self.config.rollout.prompts, self.config.rollout.n
        ours = self.prompts[len(self.found) * count :][:count]
        if prompt_ids != [prompt.token_ids for prompt in ours for _ in range(n)]:
            raise SystemExit(f"step {len(self.found) + 1}: TRL's prompts are not those of capo_fast's run")


def reward(completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    return [float(answers_equal(chat[0]["content"], a)) for chat, a in zip(completions, answer, strict=True)]


def grpo_config(config: Config, folder: Path) -> GRPOConfig:
    """capo_fast's settings in TRL's words; what they don't name is TRL's default."""
    rollout, train, updates = config.rollout, config.train, config.train.minibatches
    return GRPOConfig(
        output_dir=str(folder / "run"),
        max_steps=train.steps * updates,
        per_device_train_batch_size=rollout.prompts * rollout.n // updates,
        steps_per_generation=updates,
        gradient_accumulation_steps=1,
        num_generations=rollout.n,
        max_completion_length=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        learning_rate=train.lr,
        lr_scheduler_type=train.schedule,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        weight_decay=train.weight_decay,
        max_grad_norm=train.grad_clip,
        epsilon=config.loss.clip_low,
        epsilon_high=config.loss.clip_high,
        beta=config.loss.kl_coef,
        seed=config.seed,
        shuffle_dataset=False,
        use_vllm=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=config.policy.gradient_checkpointing,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def run(kind: type[TimedTrainer], config: Config, folder: Path) -> dict[str, Any]:
    model_path = resolve_model(config.model.path)
    tokenizer = load_tokenizer(model_path)
    drawn, _ = load_prompts(config, tokenizer).take(0, config.train.steps * config.rollout.prompts)
    rows = [{"prompt": [{"role": "user", "content": p.problem}], "answer": p.answer} for p in drawn]
    model = load_model(model_path, config.policy.attention)
    steps = Steps(drawn, config)
    trainer = kind(
        model,
        reward,
        grpo_config(config, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[steps],
    )
    steps.trainer = trainer
    trainer.train()
    loss = "capo_kernels.adapters.trl" if kind is TimedCapoTrainer else "TRL"
    return {"steps": steps.found, "loss": loss, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    steps, folder, loss = sys.argv[1:]
    kind = {"trl": TimedTrainer, "capo": TimedCapoTrainer}[loss]
    found = run(kind, arm_config(int(steps), Path(folder), ["--algorithm", "grpo"]), Path(folder))
    Path(folder, "arm.json").write_text(json.dumps(found))
