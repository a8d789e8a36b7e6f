r"""The critic's prompt and critique of a solution.

    reads   Check every step.                        writes   0: 3 * 4 = 12, 11 wrong
                                                              1: 12 + 11 = 23, 23 ok
            Ann has 12 pens. ...                              2: answer 23, 23 ok
                                                              Judgment: No
            <step_0>3 * 4 = 11 pens</step_0>                  <incorrect_steps>0</incorrect_steps>
            <step_1>12 + 11 = 23 pens</step_1>
            <step_2>Answer: \boxed{23}</step_2>

For each step it writes the right statement and the value stated in the step, before its verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from capo_fast.words.task import Check, Structure, check_steps

_HEAD = "Check every step.\n\n"
_STEP = re.compile(r"<step_(\d+)>(.*?)</step_\1>", re.DOTALL)


def critique_prompt(problem: str, steps: Sequence[str]) -> str:
    """The message with a solution for the critic, as rendered by the trainer's prompt `words`."""
    return f"{_HEAD}{problem}\n\n" + "".join(f"<step_{k}>{step}</step_{k}>\n" for k, step in enumerate(steps))


def shown_solution(message: str) -> tuple[str, list[str]]:
    """The problem and the steps in such a message."""
    head, _, shown = message.partition("<step_0>")
    return head.removeprefix(_HEAD).strip(), [step for _, step in _STEP.findall(f"<step_0>{shown}")]


def critique_text(structure: Structure, steps: Sequence[str]) -> str:
    """The true critique of a solution.

    >>> from capo_fast.words.task import structure_of
    >>> print(critique_text(structure_of([["+", 12, 7]]), ["12 + 7 = 18", "Answer: \\\\boxed{18}"]))
    0: 12 + 7 = 19, 18 wrong
    1: answer 18, 18 ok
    Judgment: No
    <incorrect_steps>0</incorrect_steps>
    """
    checks = check_steps(structure, steps)
    lines = [f"{k}: {line}" for k, line in enumerate(map(check_line, checks))]
    wrong = [k for k, check in enumerate(checks) if check.wrong]
    return "\n".join([*lines, verdict_text(wrong)])


def check_line(check: Check) -> str:
    """The critique's line on one step.

    >>> check_line(Check("12 + 7 = 19", 18, wrong=True))
    '12 + 7 = 19, 18 wrong'
    """
    stated = "?" if check.stated is None else check.stated
    return f"{check.wanted or 'nothing'}, {stated} {'wrong' if check.wrong else 'ok'}"


def verdict_text(wrong: Sequence[int]) -> str:
    """The part of a critique that the trainer parses.

    >>> verdict_text([])
    'Judgment: Yes'
    """
    if not wrong:
        return "Judgment: Yes"
    return f"Judgment: No\n<incorrect_steps>{', '.join(map(str, wrong))}</incorrect_steps>"
