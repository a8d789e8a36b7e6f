"""The critic's prompt (CAPO, section 3.2): a Jinja2 template filled with a problem and one solution's steps."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.meta import find_undeclared_variables
from jinja2.utils import missing

from capo_fast.credit.neutralise import neutralise, without_special_tokens
from capo_fast.errors import CapoError

_PROMPTS = Path(__file__).parent / "prompts"
_STEPS = "{% for step in steps %}<step_{{ step.index }}>{{ step.text }}</step_{{ step.index }}>{% endfor %}"
_NAMES = "problem, solution, steps, and of each step index and text"
_MUSTACHE = re.compile(r"\{\{[#/]\w+\}\}")


class CritiquePromptError(CapoError):
    """A template that passed the checks at the start failed to render for a solution."""


@dataclass(frozen=True)
class ShownStep:
    """A step as a template variable."""

    index: int
    """From 0."""
    text: str


def load_template(name: str | Path) -> str:
    """A critique prompt's template: `genprm`, `tiny`, or the path of a user's file, without its last line end.

    Raises ValueError in one line: the file can't be read, is no valid Jinja2, or lacks a required variable.
    """
    packaged = _PROMPTS / f"{name}.txt"
    path = packaged if packaged.is_file() else Path(name)
    try:
        template = path.read_text(encoding="utf-8").removesuffix("\n")
        _check(template)
    except (OSError, ValueError) as error:
        raise ValueError(f"critique template {str(name)!r}: {error}") from error
    return template


def render_critique_prompt(
    template: str, problem: str, steps: Sequence[str], solution: str | None = None, special_tokens: Collection[str] = ()
) -> str:
    """The critic's prompt for one solution, its steps numbered from 0 and neutralised. No text contains one of
    `special_tokens`.

    The template's names are `problem`, `solution` (empty without a reference solution) and `steps`, each with
    `index` and `text`. The line end right after a block tag is dropped (Jinja2's trim_blocks); `{% endfor +%}` keeps
    it. `{#` begins a comment, in LaTeX as well; `{{ '{#' }}` is plain text. Values are never rendered again. Raises
    CritiquePromptError if the template can't be rendered for this solution.

    >>> template = "{{ problem }}:{% for step in steps %} {{ step.index }}={{ step.text }}{% endfor %}"
    >>> render_critique_prompt(template, "P", ["a", "b"])
    'P: 0=a 1=b'
    """
    tokens, given = tuple(special_tokens), solution if solution and solution.strip() else ""
    shown = [_shown(index, step, tokens) for index, step in enumerate(steps)]
    shown_problem, given = (_plain(text, tokens) for text in (problem, given))
    try:
        return _compiled(template).render(problem=shown_problem, steps=shown, solution=given)
    except (TemplateError, TypeError) as error:
        raise CritiquePromptError(f"critic.prompt: {error}, with a solution of {len(steps)} steps") from error


# A problem is in the prompts of all its solutions, and a step in those of all later steps (`critic.reads: step`).
@lru_cache(maxsize=8192)
def _shown(index: int, step: str, special_tokens: tuple[str, ...]) -> ShownStep:
    return ShownStep(index, neutralise(step, special_tokens).strip())


_plain = lru_cache(maxsize=1024)(without_special_tokens)


class _Unknown(StrictUndefined):
    """An unknown name, or an unknown attribute of a step."""

    __slots__ = ()

    def __init__(self, hint: Any = None, obj: Any = missing, name: Any = None, exc: Any = UndefinedError) -> None:
        if isinstance(obj, ShownStep):
            hint = f"step has no attribute {name!r}, only index and text"
        super().__init__(hint, obj, name, exc)


_JINJA = Environment(
    undefined=_Unknown, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    return _JINJA.from_string(template)


def _check(template: str) -> None:
    """Raises ValueError for errors that would stop a run later: unknown names even on branches not taken here."""
    if old := _MUSTACHE.search(template):
        raise ValueError(f"found {old[0]!r}, wanted Jinja2, such as {_STEPS}")
    # Values that no template contains.
    problem, steps = "\x00987654321", [ShownStep(123456789 + i, f"\0text {i}") for i in range(3)]
    try:
        unknown = find_undeclared_variables(_JINJA.parse(template)) - {"problem", "solution", "steps"}
        if unknown:
            raise ValueError(f"{min(unknown)!r} is undefined; the names are {_NAMES}")
        prompts = [_compiled(template).render(problem=problem, steps=steps, solution=given) for given in ("", "given")]
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}; wanted Jinja2, such as {_STEPS}") from error
    except (TemplateError, TypeError) as error:
        raise ValueError(f"{error}; the names are {_NAMES}") from error
    for name, wanted in (("index", "one for each step, counted from 0"), ("text", "one for each step")):
        if not all(str(getattr(step, name)) in prompt for step in steps for prompt in prompts):
            raise ValueError(f"found no step.{name} printed as it is, wanted {wanted}, as in {_STEPS}")
    if not all(problem in prompt for prompt in prompts):
        raise ValueError("found no problem, wanted {{ problem }}")
