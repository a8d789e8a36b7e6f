"""Measured cases: a language model's head at a number of tokens, and the regime that each case covers.

A suite belongs to a kind of machine. `dry` is a smoke test of the benches; its times mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Head:
    hidden: int
    vocab: int
    layers: int = 0
    """Layers of the whole model for the training step; 0 if no step is measured."""
    intermediate: int = 0
    heads: int = 0
    kv_heads: int = 0


HEADS = {
    "qwen2.5-0.5b": Head(896, 151_936, 24, 4_864, 14, 2),
    "qwen2.5-1.5b": Head(1_536, 151_936, 28, 8_960, 12, 2),
    "qwen2.5-7b": Head(3_584, 152_064),
    "llama3-1b": Head(2_048, 128_256),
    "llama3-3b": Head(3_072, 128_256),
    "llama3-8b": Head(4_096, 128_256),
    "llama2-7b": Head(4_096, 32_000),
    "gpt2": Head(768, 50_257),
    "mini": Head(256, 151_936, 4, 1_024, 8, 2),
    "toy": Head(64, 1_000, 2, 128, 2, 1),
}


@dataclass(frozen=True)
class Case:
    """One problem. `inactive` and `clipped` are shares of its rows."""

    model: str
    tokens: int
    dtype: str
    regime: str
    inactive: float = 0.0
    """Masked rows, known before the call."""
    clipped: float = 0.1
    """Rows with a ratio outside the clip range, known only from the logits."""

    @property
    def head(self) -> Head:
        return HEADS[self.model]

    def __str__(self) -> str:
        variant = "-half-inactive" if self.inactive else "-half-clipped" if self.clipped == 0.5 else ""
        return f"{self.model}-{self.tokens}-{self.dtype}{variant}"


@dataclass(frozen=True)
class Suite:
    device: str
    cases: Mapping[str, tuple[Case, ...]] = field(hash=False)
    """Cases by kernel, the most informative first."""
    seconds: float
    """Time budget for the rounds of a case."""
    rounds: tuple[int, int]
    """Minimum and maximum number of rounds."""


SHORT = "a few short answers: launches and small operations show"
USUAL = "a usual micro-batch, in the regime of training"
LONG = "long reasoning: offsets beyond 2^32"
NARROW = "narrow vocabulary"
SMALL = "small head: the GEMMs are short, the passes over the logits weigh more"
LARGE = "large head: bound by the GEMMs"
WIDE = "full precision"


def _cuda() -> dict[str, tuple[Case, ...]]:
    usual = Case("qwen2.5-7b", 8_192, "bfloat16", USUAL)
    by_tokens = (usual, Case("qwen2.5-7b", 2_048, "bfloat16", SHORT), Case("qwen2.5-7b", 32_768, "bfloat16", LONG))
    llama = Case("llama3-8b", 8_192, "bfloat16", NARROW)
    return {
        "policy_loss": (
            *by_tokens,
            llama,
            Case("llama2-7b", 8_192, "bfloat16", NARROW),
            Case("qwen2.5-0.5b", 8_192, "bfloat16", USUAL),
            Case("qwen2.5-7b", 2_048, "float32", WIDE),
        ),
        "token_logprobs": (usual, llama, Case("qwen2.5-7b", 2_048, "bfloat16", SHORT)),
        "linear_policy_loss": (
            usual,
            Case("qwen2.5-7b", 8_192, "bfloat16", "half of the rows known to be inactive", inactive=0.5),
            Case("qwen2.5-7b", 8_192, "bfloat16", "half of the rows clipped", clipped=0.5),
            *by_tokens[1:],
            Case("llama3-8b", 8_192, "bfloat16", LARGE),
            Case("qwen2.5-0.5b", 8_192, "bfloat16", SMALL),
            Case("qwen2.5-1.5b", 8_192, "bfloat16", SMALL),
            Case("llama3-1b", 8_192, "bfloat16", SMALL),
            Case("llama3-3b", 8_192, "bfloat16", LARGE),
        ),
        "linear_token_logprobs": (usual, Case("qwen2.5-0.5b", 8_192, "bfloat16", SMALL)),
        "train_step": (
            Case("qwen2.5-0.5b", 8_192, "bfloat16", USUAL),
            Case("qwen2.5-1.5b", 8_192, "bfloat16", USUAL),
        ),
    }


def _cpu() -> dict[str, tuple[Case, ...]]:
    usual = Case("qwen2.5-0.5b", 512, "float32", USUAL)
    cached = Case("qwen2.5-0.5b", 32, "float32", "19 MB of logits: near or in the last cache")
    narrow = Case("qwen2.5-0.5b", 512, "bfloat16", "half the bytes")
    return {
        "policy_loss": (
            usual,
            narrow,
            cached,
            Case("qwen2.5-0.5b", 128, "float32", SHORT),
            Case("llama3-1b", 512, "float32", NARROW),
            Case("gpt2", 512, "float32", NARROW + ", odd"),
        ),
        "token_logprobs": (usual, narrow, cached),
        "linear_policy_loss": (
            Case("qwen2.5-0.5b", 128, "float32", LARGE),
            Case("qwen2.5-0.5b", 128, "float32", "half of the rows known to be inactive", inactive=0.5),
            Case("gpt2", 256, "float32", SMALL),
        ),
        "linear_token_logprobs": (Case("qwen2.5-0.5b", 128, "float32", LARGE),),
        "train_step": (Case("mini", 256, "float32", "a small model under a large vocabulary: the head decides"),),
    }


def _dry() -> dict[str, tuple[Case, ...]]:
    toy = Case("toy", 32, "float32", "none")
    linear = (toy, Case("toy", 32, "float32", "none", inactive=0.5))
    return {
        "policy_loss": (toy,),
        "token_logprobs": (toy,),
        "linear_policy_loss": linear,
        "linear_token_logprobs": (toy,),
        "train_step": (toy,),
    }


SUITES = {
    "cuda": Suite("cuda", _cuda(), seconds=3, rounds=(5, 50)),
    "cpu": Suite("cpu", _cpu(), seconds=15, rounds=(5, 25)),
    "dry": Suite("cpu", _dry(), seconds=0, rounds=(1, 1)),
}
