"""Model FLOPs of the learner's passes.

The usual rule, 6N per token plus attention:

    forward             2 per parameter of the layers and token, 2 per parameter of the head and response token,
                        4 x query heads x head size per layer and pair of a token and one that it attends to
    backward            twice the forward; once for a frozen parameter (under LoRA, the base), which has no gradient

Old and reference log-probs are forward passes. Recomputation by gradient checkpointing is not counted, nor are
embedding look-ups, norms and the loss: the count is of the model, not of the device. Rollouts that never enter the
model count 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capo_fast.records import TokenBatch


@dataclass
class Passes:
    """Totals over passes of one kind."""

    tokens: int = 0
    responses: int = 0
    """Tokens to which the head was applied."""
    pairs: torch.Tensor | float = 0.0

    def add(self, batch: TokenBatch) -> None:
        self.tokens += batch.input_ids.numel()
        self.responses += batch.rows.numel()
        # A token attends to itself and all before it, also if its prompt is computed once for several responses.
        self.pairs = self.pairs + (batch.position_ids + 1).sum(dtype=torch.float64)


@dataclass(frozen=True)
class ModelSize:
    """Sizes for counting FLOPs. The layers' parameters don't include the head's."""

    trained: int
    """Trained parameters of the layers."""
    frozen: int
    head: int
    head_trained: bool
    attention: int
    """Query heads x head size, summed over layers."""

    @classmethod
    def of(cls, model: Any) -> ModelSize:
        """The sizes of a Hugging Face decoder, of whole parameters also under FSDP."""
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
        """FLOPs of these passes, with or without their backward passes.

        >>> size = ModelSize(trained=10, frozen=0, head=5, head_trained=True, attention=2)
        >>> size.flops(Passes(tokens=3, responses=2, pairs=6.0), backward=True)
        384.0
        """
        trained, frozen = (6.0, 4.0) if backward else (2.0, 2.0)
        layers = (trained * self.trained + frozen * self.frozen) * passes.tokens
        head = (trained if self.head_trained else frozen) * self.head * passes.responses
        return layers + head + 2 * trained * self.attention * float(passes.pairs)


class PassCounter:
    """Counts the passes of policies on this rank by PyTorch's forward hooks. Only `read` waits for the device."""

    def __init__(self, *policies: Any) -> None:
        """policies: models of one architecture, with the arguments of `Policy.forward`."""
        self._size = ModelSize.of(policies[0].model)
        self._forward, self._backward = Passes(), Passes()
        for policy in policies:
            policy.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        passes = self._backward if keywords["loss"] else self._forward
        passes.add(arguments[0])

    def read(self) -> float:
        """The FLOPs of all passes since the last read."""
        forward, backward = self._forward, self._backward
        self._forward, self._backward = Passes(), Passes()
        return self._size.flops(forward, False) + self._size.flops(backward, True)
