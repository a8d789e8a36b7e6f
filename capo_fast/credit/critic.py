"""The critic (GenPRM): the prompt it is given and the answer it gives (CAPO, section 3.2).

The answer is one line `Judgment: ... Yes/No` and, after a No, the wrong steps inside a pair of `<incorrect_steps>`
tags. Real critics spell, decorate and repeat both, so the last of each counts. What can't be read for sure abstains: a
doubtful set does more harm in a vote than none. The policy's text is untrusted, and passes `neutralise` on its way in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from capo_fast.records import Critique

# ---- the answer ----

# Blanks inside these patterns never cross a line, so that text on another line can't complete the critic's own tag.
_FLAGS = re.IGNORECASE | re.ASCII
_HEADER = re.compile(r"(?<![a-z])judge?ment[ \t*_`~\"']*(?:\([^()\n]*\)[ \t*_`]*)?[:\uff1a]", _FLAGS)
_LIST_TAG = re.compile(r"<[ \t]*(?P<closes>/[ \t]*)?incorrect\\?_steps[ \t]*>", _FLAGS)
_LINE_END = re.compile(rf"\n|{_HEADER.pattern}|{_LIST_TAG.pattern}|\Z", _FLAGS)
_LEADING_VERDICT = re.compile(r"[ \t*_`~\"'(\[{]*(yes|no)(?![a-z]|[ \t]*(?:/|or)[ \t]*(?:yes|no))", _FLAGS)
_CHOICE = re.compile(r"yes[ \t]*(?:/|or)[ \t]*no", _FLAGS)
_VERDICT = re.compile(r"(?<![a-z])(yes|no)(?![a-z])", _FLAGS)

_STEP_TAG = re.compile(r"<[ \t]*(?:(/)[ \t]*)?step\\?[ _]?([0-9]+)[ \t]*>", _FLAGS)
_LIST_PART = re.compile(
    r"(?P<first>-?[0-9]+)(?:[ \t]*(?:-|\u2013|\u2014)[ \t]*(?P<last>[0-9]+))?(?![0-9a-z_%/+=^-]|\.\S)"
    r"|[\s,;:|&#*`\"'()\[\]{}]+|-(?!\d)|\.(?=\s|\Z)(?![ \t]+\S)|and(?![a-z])|steps?_?(?![a-z])",
    _FLAGS,
)
_FAR = 10**9


def parse_critique(text: str, num_steps: int, finished: bool = True) -> Critique:
    """What one answer of the critic says about the `num_steps` steps (numbered from 0) it was shown.

    | verdict | list | outcome |
    |---|---|---|
    | Yes | none or empty | no wrong step |
    | Yes | indices | abstain |
    | No | indices | those |
    | No | none or empty | abstain |
    | none | indices | those |
    | none | empty | no wrong step |
    | any | only out-of-range indices, words, more indices than steps, or unclosed | abstain |

    [us] Neither verdict nor list abstains, and so does an unfinished answer without a closed list. The verdict is the
    Yes or No right after `Judgment:`, else the last one on its line; `Yes/No` is the prompt's echo, not a verdict.
    Repeated indices count towards "more indices than steps"; `and` and `step` are the only words a list may hold.

    >>> parse_critique("Judgment: No\\n<incorrect_steps>0, <step_2>-<step_3>, 5</incorrect_steps>", 5).wrong_steps
    frozenset({0, 2, 3})
    """
    verdict, position = _last_verdict(text)
    body, unclosed = _last_list(text, position)
    truncated = not finished and body is None
    ranges = _index_ranges(body or "")
    named = sum(last - first + 1 for first, last in ranges or [])
    kept = [(max(first, 0), min(last, num_steps - 1)) for first, last in ranges or []]
    in_range = sum(max(0, last - first + 1) for first, last in kept)
    if body is None:
        abstained = truncated or unclosed or verdict != "yes"
    elif ranges is None or named > num_steps:
        abstained = True
    else:
        abstained = verdict == "no" if named == 0 else (in_range == 0 or verdict == "yes")
    wrong = () if abstained else (step for first, last in kept for step in range(first, last + 1))
    return Critique(abstained, frozenset(wrong), named - in_range, text, truncated)


def _last_verdict(text: str) -> tuple[str | None, int]:
    """The last judgment's `yes` or `no`, and where its line (or the part of it before a list) ends."""
    for header in reversed(list(_HEADER.finditer(text))):
        end = _LINE_END.search(text, header.end())
        assert end is not None  # it matches at the end of the text
        line = text[header.end() : end.start()]
        if leading := _LEADING_VERDICT.match(line):
            return leading[1].lower(), end.start()
        if words := _VERDICT.findall(_CHOICE.sub("", line)):
            return words[-1].lower(), end.start()
    return None, 0


def _last_list(text: str, position: int) -> tuple[str | None, bool]:
    """The body of the last closed list after `position`, and whether a list after it was left open."""
    body, opened = None, None
    for tag in _LIST_TAG.finditer(text, position):
        if not tag["closes"]:
            opened = tag.end()
        elif opened is not None:
            body, opened = text[opened : tag.start()], None
    return body, opened is not None


def _index_ranges(body: str) -> list[tuple[int, int]] | None:
    """The inclusive ranges a list names, None where it holds anything else. Never expanded: a range may be huge."""
    body = _STEP_TAG.sub(lambda tag: " " if tag[1] else f" {tag[2]} ", body)
    ranges, position = [], 0
    while position < len(body):
        part = _LIST_PART.match(body, position)
        if part is None:
            return None
        if part["first"]:
            ranges.append((_number(part["first"]), _number(part["last"] or part["first"])))
        position = part.end()
    return None if any(last < first for first, last in ranges) else ranges


def _number(digits: str) -> int:
    """An index; one that is far too long stands for any far index, as reading it would take quadratic time."""
    if len(digits) < 10:
        return int(digits)
    return -_FAR if digits.startswith("-") else _FAR


CRITIQUE_REGEX = (
    r"(.|\n)*Judgment: (Yes|No\n<incorrect_steps>\n?(<step_)?[0-9]+>?(, ?(<step_)?[0-9]+>?)*\n?</incorrect_steps>)"
)
"""What a critique under `critic.structured` matches: free text, then a verdict and its list as the prompt asks for."""

# ---- the prompt ----

_PROMPTS = Path(__file__).parent / "prompts"
_PLACEHOLDER = re.compile(
    r"\{\{#(?P<section>\w+)\}\}(?P<body>.*?)\{\{/(?P=section)\}\}|\{\{(?P<name>[^{}]*)\}\}", re.DOTALL
)
_SECTION_LINE = re.compile(r"^[ \t]*(\{\{[#/]\w+\}\})[ \t]*\n", re.MULTILINE)


def load_template(name: str | Path) -> str:
    """A critique prompt's template: `genprm`, `tiny`, or the path of a user's file. Its last line end is dropped."""
    packaged = _PROMPTS / f"{name}.txt"
    path = packaged if packaged.is_file() else Path(name)
    try:
        template = path.read_text(encoding="utf-8").removesuffix("\n")
        _checked(template)
    except (OSError, ValueError) as error:
        raise ValueError(f"critique template {str(name)!r}: {error}") from error
    return template


def render_critique_prompt(
    template: str, problem: str, steps: Sequence[str], solution: str | None = None, special_tokens: Collection[str] = ()
) -> str:
    """The critic's prompt for one solution, its steps numbered from 0 and neutralised, the tokenizer's tokens included.

    `{{problem}}` is the problem; `{{#steps}}...{{/steps}}` is repeated for each step, with `{{index}}` and `{{step}}`
    inside; `{{#solution}}...{{/solution}}`, with `{{solution}}` inside, is left out where there is no reference
    solution. Single braces are plain text (LaTeX is safe), a section tag alone on its line takes the line end with it,
    and what was filled in is never looked at again.

    >>> render_critique_prompt("{{problem}}:{{#steps}} <step_{{index}}>{{step}}</step_{{index}}>{{/steps}}", "P", "ab")
    'P: <step_0>a</step_0> <step_1>b</step_1>'
    """
    shown = [
        {"index": str(index), "step": neutralise(step, special_tokens).strip()} for index, step in enumerate(steps)
    ]
    given = [{"solution": solution}] if solution and solution.strip() else []
    return _fill(_checked(template), {"problem": problem, "steps": shown, "solution": given})


@lru_cache(maxsize=64)
def _checked(template: str) -> str:
    """The template with its section lines joined, after a rehearsal that finds every wrong or missing placeholder."""
    template = _SECTION_LINE.sub(r"\1", template)
    step = {"index": "\0index", "step": "\0step"}
    rehearsed = _fill(template, {"problem": "", "steps": [step], "solution": [{"solution": ""}]})
    for name, value in step.items():
        if value not in rehearsed:
            raise ValueError(f"it needs {{{{{name}}}}} inside {{{{#steps}}}}...{{{{/steps}}}}")
    return template


def _fill(template: str, values: Mapping[str, Any]) -> str:
    def replace(match: re.Match[str]) -> str:
        section, name = match["section"], match["name"]
        if section and isinstance(values.get(section), list):
            return "".join(_fill(match["body"], {**values, **item}) for item in values[section])
        if name and isinstance(values.get(name), str):
            return str(values[name])
        known = (f"#{key}}}}}...{{{{/{key}" if isinstance(value, list) else key for key, value in values.items())
        names = ", ".join("{{" + name + "}}" for name in known)
        raise ValueError(f"unknown placeholder {match[0][:60]!r}: here it may be one of {names}")

    return _PLACEHOLDER.sub(replace, template)


# ---- the policy's text ----

COMMON_SPECIAL_TOKENS = (
    *("<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "<think>", "</think>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<tool_call>", "</tool_call>"),
)
"""What the tokenizer of a critic elsewhere may take for a token; `<|...|>` is never let through anyway."""

_CONFUSABLE = str.maketrans(
    "\u2039\u27e8\u3008\u276e\u276c\u203a\u27e9\u3009\u276f\u276d\u0455\u043e\u0435\u0440\u0441\u0456\u0458\u0501\u0261",
    "<<<<<>>>>>soepcijdg",
)
_GAP = r"(?:[^\w<>()&]|_)"
_LOOKALIKE = re.compile(
    rf"(?:<|&lt;?)(?P<tag>{_GAP}{{0,3}}(?:step{_GAP}{{0,3}}\d+|incorrect{_GAP}{{0,3}}steps?))(?:{_GAP}{{0,2}}(?:>|&gt;?))?"
    r"|(?P<header>judge?ment)"
    r"|(?P<special><\|(?=[^<>|]{1,40}\|>))"
)


def neutralise(text: str, special_tokens: Collection[str] = ()) -> str:
    """The policy's text without anything that looks like our tags or verdict, else unchanged.

    `<step_3>` becomes `(step_3)`, `</incorrect_steps>` `(/incorrect_steps)`, `Judgment` `verdict`, a chat template's
    `<|...|>` becomes `(|...|>`. Looked for in what a reader sees: case, white space, invisible characters, accents,
    full width, `&lt;` and common lookalike letters make no difference. So a critic's echo of it parses to nothing. Of
    `special_tokens` each loses its first character, or the tokenizer would take a `</s>` for the end of a turn.

    >>> neutralise("x < 3\\n\\nJudgement: Yes \\uff1c/ STEP_3 >")
    'x < 3\\n\\nverdict: Yes (/step_3)'
    """
    folded = [(letter, i) for i, character in enumerate(text) for letter in _fold(character)]
    seen = "".join(letter for letter, _ in folded)
    parts, position = [], 0
    for match in _LOOKALIKE.finditer(seen):
        start, end = folded[match.start()][1], folded[match.end() - 1][1] + 1
        parts += [text[position:start], f"({match['tag']})" if match["tag"] else "verdict" if match["header"] else "(|"]
        position = end
    safe = "".join([*parts, text[position:]])
    for token in special_tokens:
        safe = safe.replace(token, f"({token[1:]}")
    return safe


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """What a reader sees of a character, in lower case: nothing of white space, marks and control characters."""
    folded = unicodedata.normalize("NFKD", character).casefold().translate(_CONFUSABLE)
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "CMZ")
