"""Splitting generated tokens into steps: rules, both families of tokenizers, invariants."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capo_fast.credit.steps import split_steps, step_spans, step_starts

CORPUS = ["First, 1+1 = 2.\n\nThen x € é 😀 3.\r\n\r\nSo a\n\nb\n\n\n\nc. ", "Let x = 5\n\n \n\nA: 7\n\n"] * 20


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]{1,3}\n*|\n+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's: the newline is the byte token <0x0A>; the first space of a text is stripped."""
    letters = "▁abcxyz0123456789=+.,:é"
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    for piece in [*letters, "▁a", "▁▁", "ab"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("▁", "a"), ("▁", "▁"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def tokenizer_of(*tokens: str) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer whose tokens are exactly these texts, so that a test controls where each token begins."""
    alphabet = sorted({letter for token in tokens for letter in token})
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *tokens]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0] if tokens else "?"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"eos_token": "<eos>", "additional_special_tokens": ["<special>"]})
    return fast, [fast.convert_tokens_to_ids(token) for token in tokens]


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("\n\n \n\n", []),
        ("a", ["a"]),
        ("a\n\nb", ["a", "b"]),
        ("a\n\n\n\nb", ["a", "b"]),
        ("a\r\n\r\nb\r\n\nc", ["a", "b", "c"]),
        ("a\nb\n\nc", ["a\nb", "c"]),
        ("\n\na\n\n", ["a"]),
        ("a\n\n \t\n\nb", ["a", "b"]),
        ("a\n \nb", ["a\n \nb"]),  # only adjacent newlines separate steps
        ("a\n\n  b \n", ["a", "  b \n"]),  # exact slices
        ("a\n\n\u3000\n\nb", ["a", "b"]),
    ],
)
def test_split_steps(text: str, steps: list[str]) -> None:
    assert split_steps(text) == steps


@pytest.mark.parametrize(
    ("tokens", "starts", "texts"),
    [
        ([], "", []),
        (["a", "\n\n", "b"], "101", ["a", "b"]),
        (["a", "\n", "\n", "b"], "1001", ["a", "b"]),
        (["a", "\r", "\n", "\r\n", "b"], "10001", ["a", "b"]),
        (["a\n\nb", "c"], "11", ["a", "bc"]),  # c begins inside the second piece
        (["a\n\nb", "\n\n", "c"], "101", ["a\n\nb", "c"]),  # no token begins in "b": it joins step 0
        (["a", "\n\nb", "\n\n", "c"], "1001", ["a\n\nb", "c"]),
        (["a\n", "\nb", "c"], "101", ["a", "bc"]),
        (["x\n\ny\n\nz", "z"], "11", ["x\n\ny", "zz"]),
        (["\n\n", "a", "\n\n", "b"], "1001", ["a", "b"]),  # a blank beginning belongs to step 0
        ([" ", "\n\n", "a"], "100", ["a"]),
        (["\n\na", "\n\n", "b"], "101", ["a", "b"]),
        (["a", "\n\n", " ", "\n\n", "b"], "10001", ["a", "b"]),
        (["a", "\n\n", " ", "b"], "1010", ["a", " b"]),
        (["a", "\n", " ", "\n", "b"], "10000", ["a\n \nb"]),
        (["a", "\n\n", "<eos>"], "100", ["a"]),
        (["a", "\n\n", "<special>", "b", "<eos>"], "10010", ["a", "b"]),
        (["<special>", "a"], "10", ["a"]),
        (["<eos>"], "1", [""]),
        (["<special>", "<eos>"], "10", [""]),
        ([" ", "\n\n"], "10", [" \n\n"]),
    ],
)
def test_step_spans_of_tokens(tokens: list[str], starts: str, texts: list[str]) -> None:
    tokenizer, ids = tokenizer_of(*tokens)
    spans = step_spans(ids, tokenizer)
    assert "".join("01"[start] for start in spans.starts) == starts
    assert list(spans.texts) == texts
    assert step_starts(ids, tokenizer) == list(spans.starts)


def test_unknown_ids_have_no_characters() -> None:
    tokenizer, ids = tokenizer_of("a", "\n\n", "b")
    assert step_starts([ids[0], 10**6, ids[1], 10**6, ids[2]], tokenizer) == [True, False, False, False, True]


def byte_ids(tokenizer: PreTrainedTokenizerFast, data: bytes) -> list[int]:
    """One token per byte."""
    if tokenizer is TOKENIZERS["byte_fallback"]:
        return tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in data])
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = pieces.pre_tokenize_str(data.decode())[0][0] if data else ""
    return tokenizer.convert_tokens_to_ids(list(letters))


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_characters_spread_over_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "é\n\n€😀\n\n1"
    spans = step_spans(byte_ids(tokenizer, text.encode()), tokenizer)
    assert spans.texts == ("é", "€😀", "1")
    assert [i for i, start in enumerate(spans.starts) if start] == [0, 4, 13]


def test_invalid_bytes_hide_no_blank_line() -> None:
    """A byte-fallback decoder replaces a whole run of bytes if one of them is invalid."""
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = byte_ids(tokenizer, b"1\n\n\xff2")
    assert "\n" not in tokenizer.decode(ids)
    assert step_spans(ids, tokenizer).texts == ("1", "\ufffd2")


def test_token_that_ends_inside_a_character() -> None:
    tokenizer = Tokenizer(models.WordLevel({"aĊĊâ": 0, "Ĥ¬": 1, "b": 2, "ĊĊ": 3}, unk_token="b"))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    spans = step_spans([0, 1, 2, 3, 2], fast)
    assert spans.starts == (True, True, False, False, True)  # the second token begins inside the euro sign
    assert spans.texts == ("a", "€b", "b")


def test_added_token_for_the_blank_line_and_no_cleanup_of_spaces() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    tokenizer.clean_up_tokenization_spaces = True
    ids = [*tokenizer.encode("do n't , a .\n\nb ?"), tokenizer.eos_token_id]
    assert step_spans(ids, tokenizer).texts == ("do n't , a .", "b ?")


text_of_steps = st.lists(
    st.sampled_from(["a", "xyz", "1=2", " ", "\n", "\n\n", "\r\n", "\r", "é", "€", "😀", ". ", "ab"])
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(parts=text_of_steps)
@settings(max_examples=120, deadline=None)
def test_spans_agree_with_the_text(name: str, parts: list[str]) -> None:
    tokenizer, text = TOKENIZERS[name], "".join(parts)
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    spans = step_spans(ids, tokenizer)
    assert len(spans.starts) == len(ids)
    assert (spans.starts[0] and not spans.starts[-1]) or len(ids) == 1
    assert sum(spans.starts) == len(spans.texts)
    assert len(spans.texts) <= max(1, len(split_steps(text)))
    position = 0
    for step in spans.texts:  # the steps are slices of the text, in order
        position = text.replace(" ", "").index(step.replace(" ", ""), position) + len(step.replace(" ", ""))
    if name == "byte_fallback" and "ab" not in text:  # every newline is a token there, so no piece is missed
        assert [step.strip() for step in spans.texts] == [step.strip() for step in split_steps(text) or [""]]


@given(st.text(st.sampled_from("a \n\r\u3000é"), max_size=30))
def test_split_steps_pieces_are_slices_and_not_blank(text: str) -> None:
    steps = split_steps(text)
    assert all(step.strip() and step in text for step in steps)
    assert "".join("".join(steps).split()) == "".join(text.split())


class Counted:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer) -> None:
        self._tokenizer, self.decoded = tokenizer, 0

    def decode(self, ids: list[int], **options) -> str:
        self.decoded += len(ids)
        return self._tokenizer.decode(ids, **options)

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def test_random_ids_are_split_with_linear_decoding() -> None:
    generator = random.Random(0)
    for tokenizer in TOKENIZERS.values():
        for length in (1, 7, 300):
            spans = step_spans([generator.randrange(len(tokenizer)) for _ in range(length)], tokenizer)
            assert len(spans.starts) == length and sum(spans.starts) == len(spans.texts)
        for length in (1_000, 20_000):
            counted = Counted(tokenizer)
            spans = step_spans([generator.randrange(len(tokenizer)) for _ in range(length)], counted)
            assert len(spans.starts) == length and counted.decoded <= 4 * length


def test_a_step_s_text_is_unicode_for_any_tokens() -> None:
    tokenizer = byte_fallback()
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in (0x41, 0x00, 0xFF, 0xED, 0xA0, 0x80)]
    assert step_spans(ids, tokenizer).texts == ("A\ufffd\ufffd\ufffd\ufffd\ufffd",)
