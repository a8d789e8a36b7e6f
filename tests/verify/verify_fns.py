"""Functions for the workers of `test_pool`."""

import os
import time

from capo_fast.verify.functions import VerifyTimeout


def check(prediction: str, reference: str) -> bool | float:
    """Behaves as the prediction names."""
    if prediction == "hang":
        time.sleep(1000)
    if prediction == "hang in C":
        9 ** (9**9)
    if prediction == "die":
        os._exit(3)
    if prediction == "die once" and not os.path.exists(reference):
        open(reference, "w").close()
        os._exit(3)
    if prediction == "raise":
        raise KeyError("the user's own bug")
    if prediction == "exit":
        raise SystemExit(1)
    if prediction == "give up":
        raise VerifyTimeout
    if prediction == "pid":
        return os.getpid() / 2**40
    if prediction == "value":
        return eval(reference)
    return prediction == reference


def columns(response: str, reference: str, *, level: int, truncated: bool) -> float:
    return level / 10 if truncated else 0.0


def batch(responses: list[str], references: list[str]) -> list[float]:
    """Each response scores the size of its call, in thousandths; "hang" and "die" affect the whole call."""
    if "hang" in responses:
        time.sleep(1000)
    if "die" in responses:
        os._exit(3)
    return [len(responses) / 1000] * len(responses)


def hungry(response: str, reference: str) -> bool:
    """Allocates memory at once, or bit by bit and then returns False, like a library that catches all exceptions."""
    try:
        if response == "bit by bit":
            blocks = []
            while True:
                blocks.append(bytearray(b"x" * 2**22))
        if response == "at once":
            bytearray(2**33)
    except MemoryError:
        if response == "at once":
            raise
    return response == reference


def anything(response: str, reference: str) -> dict[str, str]:
    return {response: reference}


def meet(room: str, guests: int) -> float:
    """Return 1.0 when `guests` workers are in the folder `room`."""
    os.makedirs(room, exist_ok=True)
    open(os.path.join(room, f"{os.getpid()}"), "w").close()
    while len(os.listdir(room)) < guests:
        time.sleep(0.01)
    return 1.0


not_callable = 3
