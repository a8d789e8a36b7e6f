"""The tokenizer round-trips every text of the world exactly, also through the chat template."""

from random import Random

import pytest
from transformers import AutoTokenizer

from capo_fast.tiny import MODEL
from capo_fast.tiny.critique import critique_prompt, critique_text
from capo_fast.tiny.task import BLANK, World, corrupt_solution, draw_question
from capo_fast.tiny.tokenizer import PIECES, SPECIAL, STEP_TAGS, VOCABULARY, build_tokenizer


@pytest.fixture(scope="module", params=["built", "shipped"])
def tokenizer(request):
    return build_tokenizer() if request.param == "built" else AutoTokenizer.from_pretrained(MODEL)


def texts():
    rng, world = Random(0), World.from_seed(0)
    for _ in range(100):
        question = draw_question(rng)
        for steps in (world.solution(rng, question), corrupt_solution(rng, question)):
            yield from (question, BLANK.join(steps), critique_prompt(question, steps), critique_text(question, steps))


def test_round_trip(tokenizer):
    for text in texts():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text


def test_token_by_token_decoding_adds_up(tokenizer):
    text = critique_text("9*2", ["9*2=7", "A:7"])
    assert "".join(tokenizer.decode([i]) for i in tokenizer.encode(text)) == text


def test_each_piece_is_one_token(tokenizer):
    assert len(tokenizer) == len(SPECIAL + PIECES) <= VOCABULARY
    assert all(len(tokenizer.encode(piece)) == 1 for piece in [BLANK, *STEP_TAGS, "A:", " ok\n"])


def test_only_padding_and_end_are_special(tokenizer):
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_text_that_is_not_a_piece_is_dropped(tokenizer):
    assert tokenizer.decode(tokenizer.encode("so 9*2 is 8!")) == "9*28"


def render(tokenizer, content):
    chat = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def test_chat_template(tokenizer):
    assert render(tokenizer, "9*2-9") == "9*2-9\n"
    shown = critique_prompt("9*2", ["9*2=8", "A:8"])
    assert render(tokenizer, shown) == "9*2\n<step_0>9*2=8</step_0><step_1>A:8</step_1>\n"
    assert render(tokenizer, shown + "\n") == render(tokenizer, shown), "a final line break makes no difference"
    chat = [{"role": "user", "content": "9*2"}, {"role": "assistant", "content": "9*2=8"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "9*2\n9*2=8<eos>"
