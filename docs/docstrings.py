"""Docstrings as Markdown for the site: doctests are fenced, and a `>` at the start of another line is escaped."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
COMPARISON = re.compile(r"^>(?!>> )", re.MULTILINE)


class DocstringsAsMarkdown(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = COMPARISON.sub(r"\\>", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
