"""The trained tokens of a conversation: its answers with their end tokens; other rows are refused."""

from __future__ import annotations

import re
import resource
from contextlib import ExitStack

import numpy as np
import pytest
from scripted_world import tokenizer
from sft_ranks import CHATS, answer_template, sft_config
from small_tokenizers import CHAT, byte_tokenizer

from capo_fast.config.schema import DataConfig
from capo_fast.credit.critic import parse_critique
from capo_fast.data import ChatTemplate, DataError, read_problem
from capo_fast.errors import ConfigError
from capo_fast.evaluation.labelled import Solution
from capo_fast.runtime.files import RecordError
from capo_fast.sft.batches import plan_batches
from capo_fast.sft.conversations import Conversation, read_conversations, verdict
from capo_fast.sft.examples import AnswerTemplate, Example, end_tokens
from capo_fast.sft.store import ExampleWriter

END = "<end>"
ENDED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role != 'assistant' else '' }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TWO = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d e"))


def with_template(template):
    found = byte_tokenizer(template, (END,))
    end = found.convert_tokens_to_ids(END)
    return AnswerTemplate(ChatTemplate(found), frozenset([end]), end)


def trained_texts(template, chat):
    """The parts of the conversation that are trained on."""
    example = template.example(Conversation("row 0", "", chat))
    ids = [token if trained else None for token, trained in zip(example.token_ids, example.trained, strict=True)]
    decode = template.chat.tokenizer.decode
    pieces = "".join("|" if token is None else decode([token]) for token in ids)
    return [piece for piece in pieces.split("|") if piece]


def test_only_answers_and_their_end_tokens_are_trained():
    assert trained_texts(with_template(ENDED), TWO) == ["b<end>", "d e<end>"]


def test_a_special_token_in_a_message_stays_text():
    chat = (("user", END), ("assistant", f"x{END}y"))
    [text] = trained_texts(with_template(ENDED), chat)
    assert text == "x<end>y<end>"
    example = with_template(ENDED).example(Conversation("row 0", "", chat))
    end = with_template(ENDED).end
    assert example.token_ids.count(end) == 1 and end not in example.prompt_ids


def test_a_template_without_an_end_token_gets_one_only_after_the_last_answer():
    assert trained_texts(with_template(CHAT), TWO[:2]) == ["b<end>"]
    with pytest.raises(DataError, match=r"row 0: message 2: .* ends this answer with no token at which"):
        trained_texts(with_template(CHAT), TWO)


def test_a_template_that_renders_earlier_messages_differently_is_refused():
    assert trained_texts(with_template(FORGETFUL), TWO[:2]) == ["b<end>"]
    with pytest.raises(DataError, match=r"row 0: message \d: the chat template of .* renders the messages before this"):
        trained_texts(with_template(FORGETFUL), TWO)
    hidden = "{% for m in messages %}{{ m.content if add_generation_prompt else 'x' }}{% endfor %}"
    with pytest.raises(DataError, match=r"data\.path: message 2: the chat template of "):
        with_template(hidden).check()


def test_the_shipped_template_trains_the_tokens_of_a_rollout():
    prompt = answer_template().chat.prompt(read_problem("", {"problem": "1+2", "answer": 3}, 0, DataConfig()), 99)
    example = answer_template().example(Conversation("row", "", CHATS[0]))
    assert example.prompt_ids == prompt.token_ids and all(example.trained)
    assert tokenizer().decode(example.token_ids) == "1+2=3\n\nA:3<eos>"


def test_end_tokens_of_the_generation_config_end_answers():
    ends, end = end_tokens(tokenizer(), b'{"eos_token_id": [7, 9]}')
    assert ends == {7, 9, end} and end == tokenizer().eos_token_id
    assert end_tokens(tokenizer(), b'{"eos_token_id": 0}')[0] == {0, end}
    assert end_tokens(tokenizer(), b'{"eos_token_id": null}')[0] == {end}


def test_a_full_disk_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as stack, pytest.raises(RecordError, match=r"can't write .*/train: File too large"):
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        writer = ExampleWriter(tmp_path / "train", stack)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        writer.add(Example((1,) * 20, (2,) * 20, (True,) * 20))


# ---- rows ----


def conversations(tmp_path, line, **settings):
    (tmp_path / "rows.jsonl").write_text(line)
    config = sft_config(data__path=str(tmp_path / "rows.jsonl"), **settings)
    return list(read_conversations(config, config.data, tokenizer()))


def test_rows_of_messages_and_of_prompt_and_completion_are_equivalent(tmp_path):
    [chat] = conversations(
        tmp_path, '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    [pair] = conversations(tmp_path, '{"prompt": "a", "completion": "b"}')
    [listed] = conversations(tmp_path, '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}')
    assert chat == pair == listed and (chat.problem, chat.messages[1]) == ("a", ("assistant", "b"))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}', "found no message of the assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "found an answer before any message of the user"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "a role of system, user, assistant"),
        ('{"prompt": "a", "answer": "b"}', "no field 'completion' (data.answer_field)"),
        ('{"messages": "a", "prompt": "a", "completion": "b"}', "found str, wanted a list of messages"),
        ('{"question": "a"}', "no field 'prompt' (data.prompt_field)"),
        ("[1]", "found list, wanted an object with the fields of a conversation"),
    ],
)
def test_a_row_that_is_not_a_conversation_is_named(line, error, tmp_path):
    with pytest.raises(DataError, match=rf"rows.jsonl, line 1: .*{re.escape(error)}"):
        conversations(tmp_path, line)


@pytest.mark.parametrize(
    ("first", "wrong", "expected"),
    [(-1, frozenset(), set()), (1, frozenset({1, 3}), {1, 3}), (2, None, {2}), (-1, None, set())],
)
def test_a_verdict_parses_to_the_labels_that_it_was_made_from(first, wrong, expected):
    solution = Solution("s", "p", ("a", "b", "c", "d"), first, wrong, "all")
    found = parse_critique(verdict(solution), 4)
    assert not found.abstained and found.wrong_steps == expected and found.dropped == 0


def test_a_critique_has_the_prompt_of_training(tmp_path):
    line = '{"problem": "P", "steps": ["1+1=3</step_0>", "ok"], "wrong_steps": [0]}'
    [found] = conversations(tmp_path, line, task="critic")
    assert "<step_0>\n1+1=3(/step_0)\n</step_0>" in found.messages[0][1] and found.problem == "P"
    assert found.messages[1][1].startswith("Judgment: No")


# ---- batches ----


def test_batches_of_tokens_are_full_and_every_epoch_has_every_example():
    lengths = np.array([5, 1, 2, 9, 4, 3])
    config = sft_config(train__epochs=3, train__batch_tokens=8)
    batches = plan_batches(lengths, config.train, seed=1)
    drawn = [batches.of(step) for step in range(1, batches.count + 1)]
    sizes = [sum(lengths[batch]) for batch in drawn]
    assert all(size <= 8 or len(batch) == 1 for size, batch in zip(sizes, drawn, strict=True))
    following = zip(sizes, [lengths[batch[0]] for batch in drawn[1:]], strict=False)
    assert all(size + more > 8 for size, more in following), "an example that fits is not moved to the next batch"
    flat = [index for batch in drawn for index in batch]
    assert [sorted(flat[i : i + 6]) for i in (0, 6, 12)] == [list(range(6))] * 3 and flat[:6] != flat[6:12]


def test_settings_without_a_meaning_in_fine_tuning_are_unknown():
    with pytest.raises(ConfigError, match=r"train\.minibatches: unknown setting"):
        sft_config(train__minibatches=2)
