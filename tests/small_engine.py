"""Settings of a small real engine, and reference values of its answers."""

from __future__ import annotations

import torch

from capo_fast.config.schema import EngineConfig

CONFIG = EngineConfig(dtype="float32", max_model_len=256, kv_cache_gb=0.25, enforce_eager=True)


@torch.no_grad()
def logits_of(model, request, completion):
    """float32 [L, V], the logits that each response token was drawn from."""
    ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
    return model(ids).logits[0, len(request.prompt_ids) - 1 : -1]


def chosen(logprobs, completion):
    return logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
