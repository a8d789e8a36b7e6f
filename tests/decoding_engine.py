"""A scripted engine that decodes one token of every request per step, and continues stopped rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, tokenizer

from capo_fast.records import Completion, Request


class DecodingEngine(ScriptedEngine):
    """Runs all requests at once, and records the step at which each was added and the step at which it ended."""

    def __init__(self, write: Callable[[Request], Completion] = answer, **parts) -> None:
        super().__init__(write, **parts)
        self.steps = 0
        self.entered: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self._running: dict[str, Completion] = {}
        self._due: dict[str, int] = {}

    def add(self, request: Request) -> None:
        completion = self._answer(request)
        self.entered[request.id], self._due[request.id] = self.steps, self.steps + len(completion.token_ids)
        self._running[request.id] = completion

    def step(self) -> list[Completion]:
        self.steps += 1
        return list(self._taken([name for name in self._running if self._due[name] == self.steps]))

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        return [cut(each, self.steps - self.entered[each.id]) for each in self._taken(ids)]

    def _taken(self, names: Iterable[str]) -> Iterator[Completion]:
        for name in names:
            self.ended[name] = self.steps
            yield self._running.pop(name)


def cut(whole: Completion, tokens: int) -> Completion:
    """The first tokens of an answer."""
    return replace(whole, finished=False, token_ids=whole.token_ids[:tokens], logprobs=whole.logprobs[:tokens])


def carrying_engine() -> DecodingEngine:
    """An engine for whole runs, with the real canary."""
    return DecodingEngine(continue_answer, scorer=score_with(MODEL))


def continue_answer(request: Request) -> Completion:
    """Like `answer`; a continued rollout ends where the uninterrupted one would end. Log-probs encode the part."""
    if not request.id.startswith("rollout"):
        return answer(request)
    end = request.prompt_ids.index(*tokenizer().encode("\n", add_special_tokens=False)) + 1
    written = len(request.prompt_ids) - end
    whole = answer(replace(request, prompt_ids=request.prompt_ids[:end], max_tokens=written + request.max_tokens))
    rest = whole.token_ids[written:] or (tokenizer().eos_token_id,)
    finished = whole.finished or written >= len(whole.token_ids)
    part = int(request.id.partition("-part-")[2] or 0)
    text = tokenizer().decode(rest, skip_special_tokens=True)
    return Completion(request.id, rest, (-0.5 - part / 64,) * len(rest), text, finished)
