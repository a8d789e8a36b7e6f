"""The shape of a dense decoder, from its `config.json` or offline by the name of a published model.

Letters: V vocabulary, H hidden, I intermediate, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capo_fast.config.schema import LoraConfig
from capo_fast.engine.tensor_parallel import Sizes
from capo_fast.errors import ConfigError
from capo_fast.policy.work import ModelSize


@dataclass(frozen=True)
class ModelShape:
    """Numbers of a Qwen2, Qwen2.5, Qwen3 or Llama, from which parameters are counted."""

    name: str
    kind: str
    """qwen2, qwen3 or llama"""
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    """True if embedding and head share one weight"""
    positions: int | None = None
    """Longest sequence of the model, tokens; None: unknown"""
    biases: bool = False
    """Bias of a Llama's or Qwen3's attention; Qwen2 always has one"""
    mlp_biases: bool = False

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a decoder layer."""
        H, mlp = self.hidden, self.intermediate
        attention = {"q_proj": (H, self.query), "k_proj": (H, self.key), "v_proj": (H, self.key)}
        return attention | {
            "o_proj": (self.query, H),
            "gate_proj": (H, mlp),
            "up_proj": (H, mlp),
            "down_proj": (mlp, H),
        }

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        weights = sum(inputs * outputs for inputs, outputs in self.linears.values())
        attention = self.query + 2 * self.key if self.biases or self.kind == "qwen2" else 0
        attention += self.hidden if self.biases else 0
        mlp = 2 * self.intermediate + self.hidden if self.mlp_biases else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.kind == "qwen3" else 0)
        return weights + attention + mlp + norms

    @property
    def sizes(self) -> Sizes:
        """Sizes that tensor parallelism splits."""
        return {
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
        }

    @property
    def head(self) -> int:
        """V x H"""
        return self.vocab * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside the decoder layers: embedding, last norm, and the head if it is a separate weight."""
        return self.head * (1 if self.tied else 2) + self.hidden

    @property
    def total(self) -> int:
        return self.root + self.layers * self.layer

    def adapter(self, lora: LoraConfig) -> int:
        """Parameters of a LoRA adapter; 0 for rank 0."""
        sizes = [sum(self.linears[name]) for name in lora.targets if name in self.linears]
        return lora.rank * self.layers * sum(sizes)

    def work(self, lora: LoraConfig) -> ModelSize:
        """Sizes for counting FLOPs."""
        layers, trained = self.layers * self.layer, self.adapter(lora)
        sizes = (layers, 0) if lora.rank == 0 else (trained, layers)
        return ModelSize(*sizes, head=self.head, head_trained=lora.rank == 0, attention=self.layers * self.query)


def find_shape(path: str, key: str = "model.path") -> ModelShape:
    """The shape of a folder, of a published model by name, or of a hub id (fetches config.json). Raises ConfigError.

    key: the setting that names it.
    """
    published = PUBLISHED.get(published_name(path))
    if published is not None and not Path(path).is_dir():
        return replace(published, name=path)
    from capo_fast.config.paths import resolve_model
    from capo_fast.pretrained import read_config  # transformers takes seconds, and published shapes don't need it

    return shape_of(read_config(resolve_model(path, key), key), path, key)


def shape_of(config: Any, name: str, key: str = "model.path") -> ModelShape:
    """The shape in a transformers config. Raises ConfigError for an untested architecture."""
    from capo_fast.pretrained.config import TESTED, positions

    if config.model_type not in TESTED:
        raise ConfigError(f"{key}: {name} is a {config.model_type} model, wanted one of {', '.join(TESTED)}")
    return ModelShape(
        name,
        config.model_type,
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.tie_word_embeddings,
        positions(config),
        biases=config.model_type != "qwen2" and config.attention_bias,
        mlp_biases=getattr(config, "mlp_bias", False),
    )


OWNERS = ("", "huggingfacetb", "meta-llama", "qwen")
"""Owners of the models below; others may publish changed models under the same name."""
VARIANTS = ("-instruct", "-base", "-chat")


def published_name(path: str) -> str:
    """A hub id without its owner and variant (which share a shape); "" for another owner's.

    >>> published_name("Qwen/Qwen2.5-7B-Instruct"), published_name("meta-llama/Meta-Llama-3.1-8B")
    ('qwen2.5-7b', 'llama-3.1-8b')
    >>> published_name("somebody/Llama-3.1-8B")
    ''
    """
    owner, _, name = path.lower().rpartition("/")
    plain = name.removeprefix("meta-")
    for variant in VARIANTS:
        plain = plain.removesuffix(variant)
    return plain if owner in OWNERS else ""


def _rows() -> dict[str, ModelShape]:
    """Shapes from the models' config.json. Positions are left out, as variants differ in them."""
    rows = {
        # name: kind, V, H, I, layers, heads, key-value heads, D, tied
        "smollm2-135m": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
        "smollm2-360m": ("llama", 49152, 960, 2560, 32, 15, 5, 64, True),
        "smollm2-1.7b": ("llama", 49152, 2048, 8192, 24, 32, 32, 64, True),
        "llama-3.2-1b": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
        "llama-3.2-3b": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
        "llama-3-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
        "llama-3.1-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
        "llama-3-70b": ("llama", 128256, 8192, 28672, 80, 64, 8, 128, False),
        "llama-3.1-70b": ("llama", 128256, 8192, 28672, 80, 64, 8, 128, False),
        "llama-3.3-70b": ("llama", 128256, 8192, 28672, 80, 64, 8, 128, False),
        "qwen2.5-0.5b": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
        "qwen2.5-1.5b": ("qwen2", 151936, 1536, 8960, 28, 12, 2, 128, True),
        "qwen2.5-3b": ("qwen2", 151936, 2048, 11008, 36, 16, 2, 128, True),
        "qwen2.5-7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
        "qwen2.5-14b": ("qwen2", 152064, 5120, 13824, 48, 40, 8, 128, False),
        "qwen2.5-32b": ("qwen2", 152064, 5120, 27648, 64, 40, 8, 128, False),
        "qwen2.5-72b": ("qwen2", 152064, 8192, 29568, 80, 64, 8, 128, False),
        "qwen3-0.6b": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
        "qwen3-1.7b": ("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
        "qwen3-4b": ("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
        "qwen3-8b": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
        "qwen3-14b": ("qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False),
        "qwen3-32b": ("qwen3", 151936, 5120, 25600, 64, 64, 8, 128, False),
    }
    return {name: ModelShape(name, *row) for name, row in rows.items()}


PUBLISHED = _rows()
