"""Prompts from real tokenizers, and the order they are drawn in."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CHAT, byte_tokenizer

from capo_fast.data import ChatTemplate, DataError, Problem, PromptOrder, render_prompts
from capo_fast.records import Prompt

PROBLEMS = [Problem("a", "1+1=?", "2", None), Problem("b", "2+2=?", "4", None)]


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- prompts ---------------------------------------------------------------------------------------------------------

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT


def rendered(problems: Any, template: str | None, system: str | None, room: int) -> list[Prompt]:
    return render_prompts(problems, ChatTemplate(byte_tokenizer(template), system), room)


@pytest.mark.parametrize(
    ("system", "text"),
    [
        (None, "<user>1+1=?<assistant>"),
        ("Think: é", "<system>Think: é<user>1+1=?<assistant>"),
        ("", "<system><user>1+1=?<assistant>"),
    ],
)
def test_a_prompt_is_the_chat_template_s_text(system: str | None, text: str) -> None:
    coder = byte_tokenizer()
    prompts = render_prompts(PROBLEMS, ChatTemplate(coder, system), 99)
    assert coder.decode(prompts[0].token_ids) == text
    assert all(type(token) is int for token in prompts[0].token_ids) and type(prompts[0].token_ids) is tuple
    assert [(p.id, p.problem, p.answer) for p in prompts] == [("a", "1+1=?", "2"), ("b", "2+2=?", "4")]


def test_no_problems_make_no_prompts() -> None:
    assert rendered([], CHAT, None, 99) == []


def test_a_prompt_of_exactly_the_limit_passes_and_one_more_token_does_not() -> None:
    longer = Problem("long", "1+1=?!", "2", None)
    limit = len("<user>1+1=?<assistant>")
    assert len(rendered(PROBLEMS, CHAT, None, limit)) == 2
    message = refused(rendered, [*PROBLEMS, longer, longer], CHAT, None, limit)
    assert f"2 of 4 prompts are longer than {limit} tokens" in message
    assert f"the first is 'long' with {limit + 1}" in message


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template"),
        (NO_SYSTEM, "System role not supported; if it takes no system message, set data.system_prompt: null"),
        ("{% for %}", "the chat template can't render a prompt"),
    ],
)
def test_a_template_that_can_t_be_used_is_one_line(template: str | None, says: str) -> None:
    assert says in refused(rendered, PROBLEMS, template, "Think.", 99)


def test_a_template_without_a_system_role_works_without_one() -> None:
    assert len(rendered(PROBLEMS, NO_SYSTEM, None, 99)) == 2


# ---- order -----------------------------------------------------------------------------------------------------------

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**63 - 1)


@given(sizes, seeds, st.integers(0, 50), st.lists(st.integers(0, 30), max_size=6))
def test_batches_are_one_stream_however_it_is_cut(size: int, seed: int, start: int, counts: list[int]) -> None:
    order, cursor, drawn = PromptOrder(size, seed), start, list[int]()
    for count in counts:
        indices, cursor = PromptOrder(size, seed).take(cursor, count)
        assert len(indices) == count
        drawn += indices
    assert (drawn, cursor) == order.take(start, sum(counts))


@given(sizes, seeds, st.integers(0, 5))
def test_an_epoch_draws_every_problem_once(size: int, seed: int, epoch: int) -> None:
    order = PromptOrder(size, seed)
    indices, cursor = order.take(epoch * size, size)
    assert indices == order.epoch(epoch) and cursor == (epoch + 1) * size
    assert sorted(indices) == list(range(size))


def test_seeds_and_epochs_differ() -> None:
    order = PromptOrder(100, 0)
    assert order.epoch(0) != order.epoch(1) != PromptOrder(100, 1).epoch(1)
    assert order.epoch(0) != list(range(100))
    assert PromptOrder(100, 0).epoch(0) == order.epoch(0)


def test_the_order_is_what_it_was() -> None:
    """A resumed run counts on it: a change here breaks every run's resume."""
    assert PromptOrder(8, 3).take(0, 10)[0] == [6, 7, 2, 1, 4, 5, 3, 0, 2, 1]
