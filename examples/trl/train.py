"""Step credit in TRL: the embedded world's model and problems, with the world's rule as the critic."""

import argparse
import gzip
import json
from importlib.resources import files

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import capo_kernels as ck
from capo_fast.credit.steps import split_steps, step_starts
from capo_fast.tiny.task import oracle_critique
from capo_kernels.adapters.trl import CapoLossMixin

WORLD = files("capo_fast.tiny")
SAMPLES = 8


def right(completions, answer, **columns):
    """The outcome reward: 1 if the last line, like `A:4`, has the right digit, else 0."""
    return [float(text.rpartition("A:")[2].strip() == each) for text, each in zip(completions, answer, strict=True)]


class Trainer(CapoLossMixin, GRPOTrainer):
    """TRL's trainer with the loss of capo_kernels, and one advantage per token instead of one per completion."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        return batch | {"advantages": step_advantages(batch, inputs, self.processing_class)}


def step_advantages(batch, inputs, tokenizer):
    """float32 [B, L], padded like TRL's completions. A group is SAMPLES consecutive completions."""
    trained = batch["completion_mask"].bool()
    rows = [ids[mask].tolist() for ids, mask in zip(batch["completion_ids"], trained, strict=True)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    starts = [torch.tensor(step_starts(row, tokenizer)) for row in rows]
    wrong = [wrong_steps(int(each.sum()), text, row) for each, text, row in zip(starts, texts, inputs, strict=True)]
    credit = ck.Credit(
        step_starts=torch.cat(starts),
        step_wrong=torch.cat(wrong),
        outcome=torch.tensor(right(texts, [row["answer"] for row in inputs])),
        group=torch.arange(len(rows)) // SAMPLES,
        cu_seqlens=torch.nn.functional.pad(trained.sum(1).cumsum(0), (1, 0)).int().cpu(),
    )
    advantages = ck.token_advantages(credit, torch.ones_like(credit.step_starts))
    return torch.zeros(trained.shape, device=trained.device).masked_scatter(trained, advantages.to(trained.device))


def wrong_steps(count, text, row):
    """float32 [count], 1 for each wrong step of a completion: put your own critic here."""
    faults = oracle_critique(row["prompt"], split_steps(text))
    return torch.tensor([float(step in faults) for step in range(count)])


def problems():
    """Prompts in the model's format: the problem and a line end."""
    rows = map(json.loads, gzip.decompress((WORLD / "train.jsonl.gz").read_bytes()).splitlines())
    return Dataset.from_list([{"prompt": row["problem"] + "\n", "answer": row["answer"]} for row in rows])


def make_trainer(steps, folder):
    on_cpu = not torch.cuda.is_available()
    args = GRPOConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": "float32"},
        max_steps=steps,
        per_device_train_batch_size=8 * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=48,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        bf16=not on_cpu,
    )
    trainer = Trainer(str(WORLD / "model"), right, args, train_dataset=problems())
    trainer.remove_callback(PrinterCallback)
    return trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", default="runs/trl", help="TRL's output (default: %(default)s)")
    options = parser.parse_args()
    trainer = make_trainer(options.steps, options.folder)
    trainer.train()
    for line in trainer.state.log_history[:-1]:
        print(f"step {line['step']:>2}  right answers {line['reward']:.2f}  entropy {line['entropy']:.2f}")


if __name__ == "__main__":
    main()
