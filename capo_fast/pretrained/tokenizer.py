"""Loads a model's tokenizer, and checks that it is not empty and that each of its ids has an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capo_fast.errors import ConfigError, cause_of
from capo_fast.pretrained.config import read_config, read_object

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Vocabulary files; transformers makes an empty tokenizer if a folder has none of them."""


def load_tokenizer(path: str, key: str = "model.path") -> Any:
    """The tokenizer of a model's folder or hub id. Raises ConfigError."""
    from transformers import AutoTokenizer  # takes seconds; importing this module does not

    where, config = f"{key}: {path}", read_config(path, key)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in FILES):
        raise ConfigError(f"{where}: no tokenizer, wanted tokenizer.json beside the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception itself
        _check_json(Path(path), where)
        raise ConfigError(f"{where}: no tokenizer can be loaded: {cause_of(error)}") from error
    _check_vocabulary(tokenizer, where)
    _check_ids(tokenizer, config, where)
    return tokenizer


def _check_json(folder: Path, where: str) -> None:
    """Raises ConfigError with the name of a file that is not JSON."""
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        if file.is_file():
            read_object(file, where)


def _check_vocabulary(tokenizer: Any, where: str) -> None:
    """Raises ConfigError for the empty tokenizer that transformers makes from a file that its class can't read."""
    found = tokenizer("1+1", add_special_tokens=False)["input_ids"]
    if not set(found) - {tokenizer.unk_token_id}:
        raise ConfigError(f"{where}: no tokenizer, found one without a token for '1+1', wanted tokenizer.json")


def _check_ids(tokenizer: Any, config: Any, where: str) -> None:
    """Raises ConfigError for a token without an embedding: it would fail inside the model, on a GPU as a device assert.

    A special token that no prompt contains is allowed: some tokenizer classes of transformers add such tokens, and text
    that spells one is tokenised as text.
    """
    size = config.get_text_config().vocab_size
    written = f"{tokenizer.bos_token} {tokenizer.eos_token} {tokenizer.chat_template}"
    unused = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = sorted(
        (id_, token)
        for token, id_ in tokenizer.get_vocab().items()
        if id_ >= size and (token not in unused or token in written)
    )
    if beyond:
        id_, token = beyond[0]
        raise ConfigError(
            f"{where}: the tokenizer has {len(beyond)} tokens beyond the model's vocabulary of {size}, "
            f"as {token!r} with id {id_}: wanted resized embeddings, or a tokenizer without them"
        )
