"""The work of the learner's passes: the model FLOPs of the tokens that were computed.

The rule is the usual one, 6N per token and the products of attention:

    forward             2 per parameter of the layers and token, 2 per parameter of the head and response token,
                        4 x query heads x head size per layer and pair of a token and one that it attends to
    backward            twice the forward; a frozen parameter (under LoRA, the base) has no gradient: once

Old and reference log-probs are forward passes. What gradient checkpointing computes again is left out, as are embedding
look-ups, norms and the loss: this is what the model needs, not what the device did. Rollouts that never enter the model
need nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capo_fast.records import TokenBatch


@dataclass
class Passes:
    """Passes of one kind, as many as there were."""

    tokens: int = 0
    responses: int = 0
    """Tokens that the head was applied to."""
    pairs: torch.Tensor | float = 0.0

    def add(self, batch: TokenBatch) -> None:
        self.tokens += batch.input_ids.numel()
        self.responses += batch.rows.numel()
        # A token attends to those before it, and to itself: also where a prompt is computed once for its responses.
        self.pairs = self.pairs + (batch.position_ids + 1).sum(dtype=torch.float64)


@dataclass(frozen=True)
class ModelSize:
    """What FLOPs are counted by. The head's parameters are not among those of the layers."""

    trained: int
    """Trained parameters of the layers."""
    frozen: int
    head: int
    head_trained: bool
    attention: int
    """Query heads x head size, summed over layers."""

    @classmethod
    def of(cls, model: Any) -> ModelSize:
        """Of a Hugging Face decoder; FSDP's shards count as whole."""
        parameters = list(model.model.layers.parameters())
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        head = model.get_output_embeddings().weight
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            trained,
            sum(each.numel() for each in parameters) - trained,
            head.numel(),
            head.requires_grad,
            config.num_hidden_layers * config.num_attention_heads * size,
        )

    def flops(self, passes: Passes, backward: bool) -> float:
        """Of so many passes, with their backward or without.

        >>> size = ModelSize(trained=10, frozen=0, head=5, head_trained=True, attention=2)
        >>> size.flops(Passes(tokens=3, responses=2, pairs=6.0), backward=True)
        384.0
        """
        trained, frozen = (6.0, 4.0) if backward else (2.0, 2.0)
        layers = (trained * self.trained + frozen * self.frozen) * passes.tokens
        head = (trained if self.head_trained else frozen) * self.head * passes.responses
        return layers + head + 2 * trained * self.attention * float(passes.pairs)


class PassCounter:
    """Counts the passes of policies on this rank, by hooks that PyTorch calls before each. The host waits in `read`."""

    def __init__(self, *policies: Any) -> None:
        """policies: of one architecture, called as `Policy.forward` is."""
        self._size = ModelSize.of(policies[0].model)
        self._forward, self._backward = Passes(), Passes()
        for policy in policies:
            policy.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        passes = self._backward if keywords["loss"] else self._forward
        passes.add(arguments[0])

    def read(self) -> float:
        """The FLOPs of all passes since the last read."""
        forward, backward = self._forward, self._backward
        self._forward, self._backward = Passes(), Passes()
        return self._size.flops(forward, False) + self._size.flops(backward, True)
