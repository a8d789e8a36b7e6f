"""The tokenizer: a fixed list of pieces, longest match first, joined again without a space.

It is a `Qwen2Tokenizer`, because transformers loads that class for every Qwen2 checkpoint, whatever the files specify.
Its byte-pair part has no merges; each piece is an added token. Text that matches no piece is dropped, as by any
byte-pair model that lacks the letter.
"""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

PAD, EOS = "<pad>", "<eos>"
SPECIAL = [PAD, EOS]
STEP_TAGS = [tag for k in range(10) for tag in (f"<step_{k}>", f"</step_{k}>")]
CRITIQUE = [" said ", " ok\n", " x\n", "?", "Judgment:", " Yes", " No", "<incorrect_steps>", "</incorrect_steps>", ","]
PIECES = [*"0123456789+-*=", "A:", "\n\n", "\n", *STEP_TAGS, *CRITIQUE]
VOCABULARY = 64
"""Rows of the embedding: the pieces, rounded up."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
"""A user message and one line break; the same for questions and for critiques (`<step_0>` distinguishes them)."""


def build_tokenizer() -> PreTrainedTokenizerBase:
    """The world's tokenizer. Only padding and end are special tokens: the engine must not drop the step tags."""
    tokenizer = Qwen2Tokenizer(
        vocab={piece: i for i, piece in enumerate(SPECIAL + PIECES)},
        merges=[],
        eos_token=EOS,
        pad_token=PAD,
        unk_token=None,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # required by generation
        model_max_length=256,
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in PIECES])
    return tokenizer
