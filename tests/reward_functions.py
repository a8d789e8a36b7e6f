"""Reward functions that tests name with --reward.fn."""

from __future__ import annotations

import time

from capo_fast.verify.functions import VerifyTimeout


def digit_share(response: str, reference: str) -> float:
    """The share of digits in a response. Even a random model's groups are then not tied."""
    return sum(character.isdigit() for character in response) / max(len(response), 1)


def tiny_answer(response: str, answer: str) -> bool:
    """The default reward for the tiny world, without its slow imports."""
    return response.rpartition("A:")[2].strip() == answer


def by_level(response: str, answer: str, *, level: float, truncated: bool) -> float:
    """The row's `level`, or 0 if the length limit cut the response."""
    return 0.0 if truncated else level


def lengths(responses: list[str], answers: list[str]) -> list[float]:
    """For each response, the share of the responses in this call that are not longer."""
    return [sum(len(other) <= len(each) for other in responses) / len(responses) for each in responses]


def never(response: str, answer: str) -> bool:
    raise VerifyTimeout


def last_word(response: str, answer: str) -> bool:
    """A quick check, except that the response `slow` takes longer than any test's deadline."""
    if response == "slow":
        time.sleep(60)
    return response.split()[-1:] == [answer]
