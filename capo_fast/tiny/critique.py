"""The critic's prompt and critique of a solution.

    reads   9*2-9                                    writes   <step_0>9*2=8 said 7 x
            <step_0>9*2=7</step_0><step_1>...                 <step_1>7-9=8 said 8 ok
                                                              <step_2>A:8 said 8 ok
                                                              Judgment: No
                                                              <incorrect_steps>0</incorrect_steps>

The critic writes the right line before its verdict: without that re-derivation its accuracy stays at chance.

The critic of steps gets a solution up to the step that it judges, and writes the right value before its verdict:

    reads   9*2-9                                    writes   8 No
            <step_0>9*2=7</step_0>
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_fast.tiny.task import expected_lines, stated, true_wrong_steps


def critique_prompt(question: str, steps: Sequence[str]) -> str:
    """The message with a solution for the critic, as rendered by the trainer's prompt `tiny`."""
    return question + "\n" + "".join(f"<step_{k}>{step}</step_{k}>" for k, step in enumerate(steps))


def critique_text(question: str, steps: Sequence[str]) -> str:
    """The true critique of a solution.

    >>> print(critique_text("9*2", ["9*2=8", "A:9"]))
    <step_0>9*2=8 said 8 ok
    <step_1>A:8 said 9 x
    Judgment: No
    <incorrect_steps>1</incorrect_steps>
    """
    wrong, text = true_wrong_steps(question, steps), ""
    for k, (line, step) in enumerate(zip(expected_lines(question, steps), steps, strict=True)):
        value = stated(step)
        text += f"<step_{k}>{line or '?'} said {'?' if value is None else value} {'x' if k in wrong else 'ok'}\n"
    return text + verdict_text(wrong)


def step_critique_text(question: str, steps: Sequence[str]) -> str:
    """The true critique of the last step alone: the value that it should state, then the verdict.

    >>> step_critique_text("9*2-9", ["9*2=8", "8-9=8"]), step_critique_text("9*2", ["9*2=8", "A:8"])
    ('9 No', '8 Yes')
    """
    line = expected_lines(question, steps)[-1]
    return f"{line[-1] if line else '?'} {'Yes' if line == steps[-1] else 'No'}"


def verdict_text(wrong: frozenset[int]) -> str:
    """The part of a critique that the trainer parses.

    >>> verdict_text(frozenset())
    'Judgment: Yes'
    """
    if not wrong:
        return "Judgment: Yes"
    return f"Judgment: No\n<incorrect_steps>{','.join(map(str, sorted(wrong)))}</incorrect_steps>"
