"""Examples -> gradient steps on the answers' log-probs, with the optimizer, the packing and the guards of `Learner`.

Gradients are summed over micro-batches and ranks with one denominator, the trained tokens of the whole batch, so the
split does not change the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from capo_fast.policy.batch import Parts, deal, pack_tokens
from capo_fast.policy.learner import Learner
from capo_fast.records import TokenBatch
from capo_fast.sft.examples import Example

DEALT = 256
"""Held-out examples that are distributed over micro-batches at a time: the distribution takes superlinear time."""


@dataclass(frozen=True)
class HeldOut:
    """Results of the policy on held-out examples."""

    loss: float
    """Nats per token of the answers."""
    rate: float
    """exp(-loss), the geometric mean of the tokens' probabilities; the best checkpoint has the highest rate."""
    tokens: int
    """Tokens of the answers."""


class AnswerLearner(Learner):
    """Takes gradient steps on examples. Its methods are collectives; every rank gets the same examples."""

    def fit(self, examples: Sequence[Example]) -> dict[str, float]:
        """One update. Returns its metrics, over all ranks. Raises TrainingDiverged."""
        tokens, lr = answer_tokens(examples), float(self.optimizer.param_groups[0]["lr"])
        loss = torch.zeros((), device=self.device)
        for batch, share in self._accumulating(list(self._micro_batches(examples))):
            part = -share * self.policy(batch, self.spec, loss=False).sum() / tokens
            (part * dist.get_world_size()).backward()  # FSDP averages gradients over ranks
            loss += part.detach()
        dist.all_reduce(loss)
        norm, skipped = self._step(loss.item())
        return {"loss": loss.item(), "grad_norm": norm, "updates_skipped": int(skipped), "lr": lr}

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> HeldOut | None:
        """The loss on held-out examples; None without any."""
        if not examples:
            return None
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for start in range(0, len(examples), DEALT):
            part = examples[start : start + DEALT]
            tokens += answer_tokens(part)
            for batch, share in self._micro_batches(part):
                total -= share * self.policy(batch, self.spec, loss=False).double().sum().cpu()
        dist.all_reduce(total)
        loss = total.item() / tokens
        return HeldOut(loss, math.exp(-loss), tokens)

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[tuple[TokenBatch, float]]:
        """This rank's micro-batches with weight 1; fillers, which keep the ranks synchronised, with weight 0."""
        rank, world = dist.get_rank(), dist.get_world_size()
        bins = deal(examples, self.config.train.micro_tokens, world, parts_of)
        filler = min(examples, key=len)
        for bin_ in bins[rank::world]:
            yield pack_examples(bin_ or [filler]).to(self.device), float(bool(bin_))


def parts_of(example: Example) -> Parts:
    """Examples of one prompt are a group."""
    return hash(example.prompt_ids), example.prompt_ids, len(example.token_ids)


def pack_examples(examples: Sequence[Example]) -> TokenBatch:
    """Whole examples concatenated; `rows` and `targets` are those of the trained tokens."""
    packed = pack_tokens([(each.prompt_ids, each.token_ids) for each in examples])
    trained_T = torch.tensor([is_trained for each in examples for is_trained in each.trained])
    return replace(packed, rows=packed.rows[trained_T], targets=packed.targets[trained_T])


def answer_tokens(examples: Sequence[Example]) -> int:
    """Trained tokens."""
    return sum(sum(each.trained) for each in examples)
