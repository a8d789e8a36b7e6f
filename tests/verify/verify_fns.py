"""Functions for the workers of `test_pool`."""

import os
import time

from capo_fast.verify.pool import VerifyTimeout


def check(prediction: str, reference: str) -> bool | float:
    """Does what the prediction says."""
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


def meet(room: str, guests: int) -> float:
    """Return once so many are in the room."""
    os.makedirs(room, exist_ok=True)
    open(os.path.join(room, f"{os.getpid()}"), "w").close()
    while len(os.listdir(room)) < guests:
        time.sleep(0.01)
    return 1.0


not_callable = 3
