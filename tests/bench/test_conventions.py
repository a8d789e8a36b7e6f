"""The page of conventions is what its command makes."""

from __future__ import annotations

from bench.conventions import PAGE, page


def test_the_table_of_conventions_is_as_the_command_makes_it():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "python -m bench.conventions makes it anew"
