"""The parser against an independent model of its table, on critiques of known meaning and on random ones."""

from __future__ import annotations

from random import Random

import fuzz_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.credit.critic import parse_critique

STEPS = 6
HEADERS = [
    "Judgment: {}",
    "judgement :{}",
    "**Judgment:** **{}**",
    "### Final Judgement\uff1a `{}`.",
    "Judgment (Yes/No): {}!",
]
TALK = [
    "",
    "Step by step.\n",
    "\u6211\u4eec\u68c0\u67e5\u6bcf\u4e00\u6b65\u3002\n",
    "```\n",
    "2 + 2 = 4, no?\r\n",
    "<step_1> looks right\n",
    "- yes\n- no\n",
]
SPELLINGS = ["{}", "<step_{}>", "step {}", "**{}**", "<step_{}></step_{}>", "Step_{}"]
SEPARATORS = [", ", "\n", " and ", " ", "\r\n- ", ";"]
UNREADABLE = ["none", "the second", "1 because 2 is odd", "2.5", "4-2", "\u4e8c"]

indices = st.lists(st.integers(0, STEPS + 3), max_size=STEPS + 2)
listed = st.one_of(
    st.none(),  # no list
    st.tuples(st.just("indices"), indices, st.sampled_from(SPELLINGS), st.sampled_from(SEPARATORS)),
    st.tuples(st.just("range"), st.tuples(st.integers(0, STEPS + 3), st.integers(0, STEPS + 3)).map(sorted)),
    st.tuples(st.just("words"), st.sampled_from(UNREADABLE)),
    st.tuples(st.just("unclosed"), indices),
)


def outcome(verdict: str | None, listing: tuple | None, finished: bool) -> set[int] | None:
    """The table of `parse_critique`, computed from the meaning: the wrong steps, or None if it abstains."""
    if listing is None:
        return set() if verdict == "Yes" and finished else None
    kind, named = listing[0], listing[1]
    if kind in ("words", "unclosed"):
        return None
    named = list(range(named[0], named[1] + 1)) if kind == "range" else named
    if not named:
        return None if verdict == "No" else set()
    kept = {index for index in named if index < STEPS}
    return None if verdict == "Yes" or not kept or len(named) > STEPS else kept


def written(verdict: str | None, listing: tuple | None, header: str, talk: list[str]) -> str:
    lines = [talk[0], "" if verdict is None else header.format(verdict) + "\n", talk[1]]
    if listing is None:
        return "".join([*lines, talk[2]])
    kind, body = listing[0], str(listing[1])
    if kind == "indices":
        body = listing[3].join(listing[2].replace("{}", str(index)) for index in listing[1])
    elif kind == "range":
        body = f"<step_{listing[1][0]}> - <step_{listing[1][1]}>"
    closing = "" if kind == "unclosed" else "</incorrect_steps>"
    return "".join([*lines, "<incorrect_steps>", body, closing, "\n", talk[2]])


@given(
    st.sampled_from([None, "Yes", "No"]),
    listed,
    st.sampled_from(HEADERS),
    st.lists(st.sampled_from(TALK), min_size=3, max_size=3),
    st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_against_the_table(
    verdict: str | None, listing: tuple | None, header: str, talk: list[str], finished: bool
) -> None:
    text = written(verdict, listing, header, talk)
    critique = parse_critique(text, STEPS, finished)
    assert (None if critique.abstained else set(critique.wrong_steps)) == outcome(verdict, listing, finished), text


def test_fuzz() -> None:
    """Properties that hold for any critique."""
    random = Random(0)
    for _ in range(1_000):
        text, steps = fuzz_texts.critique(random), random.randint(1, 12)
        critique = parse_critique(text, steps, finished=random.random() < 0.8)
        assert critique.wrong_steps <= set(range(steps)) and critique.text == text
        assert not (critique.abstained and critique.wrong_steps) and critique.dropped >= 0
