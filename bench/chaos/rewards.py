"""Reward functions of the case `hung-verifier`: one response in eight, chosen by its text, gets no verdict."""

from __future__ import annotations

import time
from zlib import crc32

from capo_fast.verify.functions import VerifyTimeout


def is_right(response: str, answer: str) -> bool:
    return response.rpartition("A:")[2].strip() == answer


def hangs(response: str, answer: str) -> bool:
    """Never returns for one response in eight: its worker must be killed."""
    if crc32(response.encode()) % 8 == 0:
        time.sleep(10**6)
    return is_right(response, answer)


def gives_up(response: str, answer: str) -> bool:
    """Times out for the same responses, without being killed."""
    if crc32(response.encode()) % 8 == 0:
        raise VerifyTimeout
    return is_right(response, answer)
