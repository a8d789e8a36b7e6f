"""Warnings about a critic that finds nothing, or everything: each at most once per start of a run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from capo_fast.config.schema import Config
from capo_fast.exchange.figures import Figures
from capo_fast.terminal import print_line
from capo_fast.verify.functions import is_right

STEPS = 3
"""Training steps with readable critiques before the votes are judged."""
SHOWN = 80
"""Characters of a critique in a warning."""


@dataclass
class CriticWatch:
    """On rank 0."""

    config: Config
    unread: bool = False
    """Whether the warning about unreadable critiques was printed."""
    first: int = 0
    """The first of the steps whose votes are judged."""
    read: list[Figures] = field(default_factory=list)
    """Of rollouts with a readable critique, in these steps."""
    steps: int = 0

    def note(self, step: int, figures: Sequence[Figures], rows: Sequence[bytes]) -> None:
        """rows: the parts of the step's rollouts file; they may be empty."""
        if not self.config.has_critic:
            return
        answered = sum(each.critiques - each.failed for each in figures)
        read = [each for each in figures if each.parsed]
        if answered and not read and not self.unread:
            self.unread = True
            print_line("warning", self._unreadable(step, answered, figures, first_critique(rows)))
        if read and self.steps < STEPS:
            self._judge(step, read)

    def _judge(self, step: int, read: Sequence[Figures]) -> None:
        self.first = self.first or step
        self.read += read
        self.steps += 1
        if self.steps == STEPS:
            found = self._one_sided()
            if found:
                where = f"steps {self.first} to {step}: the critic"
                print_line("warning", f"{where} {found}; {self._look()}, and measure it with capo critic-eval")
            self.read = []

    def _one_sided(self) -> str | None:
        """What is wrong with the votes so far."""
        votes = [vote for each in self.read for vote, by in zip(each.votes, each.judged, strict=True) if by]
        wrong = sum(each.outcome is not None and not is_right(each.outcome) for each in self.read)
        if not any(votes) and 2 * wrong > len(self.read):
            return f"found no wrong step, although {wrong} of the {len(self.read)} answers that it read are wrong"
        # A judgment of whole answers rightly marks every step of wrong ones.
        expected = self.config.credit.process == "outcome" and wrong == len(self.read)
        if all(vote >= 0.5 for vote in votes) and not expected:
            return f"found all {len(votes)} steps wrong, in {len(self.read)} answers, of which {wrong} are wrong"
        return None

    def _unreadable(self, step: int, answered: int, figures: Sequence[Figures], text: str | None) -> str:
        cut = sum(each.truncated for each in figures)
        shown = "" if text is None else f"; one is {text[:SHOWN]!r}"
        credit = self.config.credit
        by_votes = credit.fn is None and credit.process != "critique-ratio"
        alone = ", so credit is by outcome alone" if by_votes else ""
        return (
            f"step {step}: none of {answered} critiques could be read ({cut} cut or without room){alone}{shown}; "
            f"{self._look()}"
        )

    def _look(self) -> str:
        critic = self.config.critic
        return (
            f"check {critic.key_of('prompt')}, {critic.key_of('verdict')} ({critic.verdict}) and "
            f"{critic.key_of('max_tokens')} ({critic.max_tokens})"
        )


def first_critique(rows: Sequence[bytes]) -> str | None:
    """The text of the first critique in parts of a rollouts file; None without one."""
    for line in gzip.decompress(b"".join(rows)).splitlines():
        for critique in json.loads(line)["critiques"]:
            if not critique["failed"]:
                return str(critique["text"])
    return None
