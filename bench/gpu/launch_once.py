"""One warm call of a row kernel for a profiler: `python -m bench.gpu.launch_once IMPL KIND`.

KIND: `loss` (with its gradient, in place) or `logprobs`.
"""

from __future__ import annotations

import sys

import torch

import capo_kernels as ck

TOKENS, VOCAB = 4_096, 152_064


def main(impl: str, kind: str) -> None:
    on_gpu = torch.cuda.is_available()
    device, tokens, vocab = ("cuda", TOKENS, VOCAB) if on_gpu else ("cpu", 8, 1_000)
    logits = torch.randn(tokens, vocab, device=device).bfloat16()
    targets = torch.zeros(tokens, device=device).long()
    for _ in range(2):
        if kind == "logprobs":
            ck.token_logprobs(logits, targets, impl=impl)
        else:
            leaf = logits.clone().requires_grad_()
            others = {name: torch.ones(tokens, device=device) for name in ("weights", "advantages")}
            ck.policy_loss(leaf * 1, targets, **others, inplace=True, impl=impl).loss.backward()
    if on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
