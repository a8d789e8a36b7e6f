"""Reward functions that tests name with --reward.fn."""

from __future__ import annotations


def digit_share(response: str, reference: str) -> float:
    """The share of digits in a response: even a random model gets groups that are not tied."""
    return sum(character.isdigit() for character in response) / max(len(response), 1)
