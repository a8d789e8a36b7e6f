"""OpenRLHF: its log-prob helper. Written from the source of OpenRLHF 0.11.2, which imports deepspeed."""

from __future__ import annotations

from torch import Tensor

from ..api import token_logprobs
from .arguments import flat_rows


def log_probs_from_logits(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """openrlhf/models/utils.py, `log_probs_from_logits`: logits [..., V], labels [...] -> log-probs of the shape
    `logits.shape[:-1]`, float32.

    OpenRLHF divides the caller's logits by the temperature in place and in their dtype; here they are unchanged.
    """
    logits_TV, labels_T = flat_rows(logits=logits, labels=labels)
    logp_T = token_logprobs(logits_TV, labels_T, temperature=temperature)
    assert isinstance(logp_T, Tensor)  # entropy=False
    return logp_T.view(logits.shape[:-1])
