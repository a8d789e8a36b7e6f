"""Rewards for arithmetic mod 10, whose solutions end with a line like `A:4`."""


def right(response, answer):
    """The outcome reward: True if the last line has the right digit."""
    return response.rpartition("A:")[2].strip() == answer


def complete(response, answer, *, problem, truncated):
    """The share of the problem's operations that have a line. `problem` is a field of the data's row; `truncated` is
    True if the length limit cut the response."""
    operations = sum(character in "+-*" for character in problem)
    return 0.0 if truncated else min(1.0, response.count("=") / operations)
