"""Training and test problems: read from files and data sets, rendered as prompts, and drawn in a fixed order."""

from capo_fast.data.chat import ChatTemplate, render_prompts
from capo_fast.data.fields import (
    MISSING,
    DataError,
    Message,
    Problem,
    find,
    read_messages,
    read_problem,
    row_id,
    shown_messages,
    text_field,
)
from capo_fast.data.index import PromptSet, Source, build_index, open_prompts
from capo_fast.data.problems import Problems, PromptOrder
from capo_fast.data.rows import Row, read_rows

__all__ = [
    "MISSING",
    "ChatTemplate",
    "DataError",
    "Message",
    "Problem",
    "Problems",
    "PromptOrder",
    "PromptSet",
    "Row",
    "Source",
    "build_index",
    "find",
    "open_prompts",
    "read_messages",
    "read_problem",
    "read_rows",
    "render_prompts",
    "row_id",
    "shown_messages",
    "text_field",
]
