"""Signatures of reward functions: columns, lists, settings, and refused signatures."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from capo_fast.verify.functions import Item, load_function

MODULE = """
def plain(response, answer): return True
def columns(response, reference, level, *, truncated, subject="algebra"): return (level, truncated, subject)
def listed(responses, references, *, level): return [r == a for r, a in zip(responses, references)]
def defaulted(responses, references, *, subject="algebra"): return [subject for _ in responses]
def short(responses, references): return [1.0]
def by_place(response, reference, level=1, /): return True
def any_two(*texts): return texts[0] == texts[1]
def settled(response, reference, *, tolerance=0.0, error=None): return (tolerance, error)
def one(response): return True
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "signatures.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    ("name", "batch", "required", "optional", "columns"),
    [
        ("plain", False, (), {}, ()),
        ("columns", False, ("level", "truncated"), {"subject": "algebra"}, ("level", "subject")),
        ("listed", True, ("level",), {}, ("level",)),
        ("any_two", False, (), {}, ()),
        ("by_place", False, (), {}, ()),
        ("settled", False, (), {"error": None}, ("error",)),
    ],
)
def test_a_signature_determines_the_arguments(name, batch, required, optional, columns):
    found = load_function(f"signatures:{name}", {"tolerance": 0.1, "percent": True})
    assert (found.batch, found.required, found.optional, found.columns) == (batch, required, optional, columns)


def test_columns_are_passed_by_name_and_settings_are_not_columns():
    row = {"level": 3, "truncated": True, "tolerance": 9.0, "other": 1}
    assert load_function("signatures:columns")([Item("", "", row)]) == [(3, True, "algebra")]
    assert load_function("signatures:columns")([Item("", "", row | {"subject": "logic"})]) == [(3, True, "logic")]
    assert load_function("signatures:settled", {"tolerance": 0.1})([Item("", "", row)]) == [(0.1, None)]


def test_the_best_of_several_references_counts():
    plain, listed = load_function("signatures:any_two"), load_function("signatures:listed")
    assert plain([Item("5", ("4", "5"))]) == [True] and plain([Item("5", ("4", "6"))]) == [False]
    items = [
        Item(response, reference, {"level": 1})
        for response, reference in (("5", ("4", "5")), ("5", "4"), ("6", ("6",)))
    ]
    assert listed(items) == [True, False, True]


def test_a_function_of_lists_gets_all_responses_and_must_return_a_value_for_each():
    items = [Item("a", "a", {"level": 1}), Item("b", "c", {"level": 2})]
    assert load_function("signatures:listed")(items) == [True, False]
    with pytest.raises(ValueError, match="it returned 1 values for 2 responses"):
        load_function("signatures:short")(items)


def test_a_default_is_the_argument_if_no_row_has_the_column_and_an_entry_if_some_have():
    logic, none = Item("", "", {"subject": "logic"}), Item("", "", {})
    defaulted = load_function("signatures:defaulted")
    assert defaulted([logic, none]) == [["logic", "algebra"]] * 2
    assert defaulted([none]) == ["algebra"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("signatures:one", TypeError, "takes 1 parameters by position, wanted response and reference"),
        ("signatures:__name__", TypeError, "not callable"),
        ("signatures:absent", AttributeError, "absent"),
        ("signatures", ValueError, "named 'package.module:function'"),
    ],
)
def test_an_invalid_reward_function_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        load_function(name)
