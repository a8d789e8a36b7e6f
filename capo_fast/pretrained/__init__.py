"""A pretrained model's files, checked before any weight is loaded."""

from capo_fast.pretrained.config import check_context, check_trainable, positions, read_config
from capo_fast.pretrained.folder import (
    GENERATION,
    check_engine_values,
    check_engine_weights,
    check_finite,
    check_model_folder,
    generation_file,
    weight_holders,
)
from capo_fast.pretrained.tokenizer import load_tokenizer

__all__ = [
    "GENERATION",
    "check_context",
    "check_engine_values",
    "check_engine_weights",
    "check_finite",
    "check_model_folder",
    "check_trainable",
    "generation_file",
    "load_tokenizer",
    "positions",
    "read_config",
    "weight_holders",
]
