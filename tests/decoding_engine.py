"""A scripted engine that decodes one token of every request per step, and goes on with rollouts that were stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, tokenizer

from capo_fast.records import Completion, Request


class DecodingEngine(ScriptedEngine):
    def __init__(self, write: Callable[[Request], Completion] | None = None) -> None:
        super().__init__(write or answer_from_there, score_with(MODEL))
        self.steps = 0
        self.entered: dict[str, int] = {}
        """The step after which each request came."""
        self.ended: dict[str, int] = {}
        self._running: dict[str, Completion] = {}

    def add(self, request: Request) -> None:
        self.entered[request.id] = self.steps
        self._running[request.id] = self._answer(request)

    def step(self) -> list[Completion]:
        self.steps += 1
        done = [each for name, each in self._running.items() if self.steps - self.entered[name] == len(each.token_ids)]
        return list(self._taken(each.id for each in done))

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        written = {name: self.steps - self.entered[name] for name in ids}
        return [
            replace(each, finished=False, token_ids=each.token_ids[: written[each.id]],
                    logprobs=each.logprobs[: written[each.id]])
            for each in self._taken(ids)
        ]  # fmt: skip

    def _taken(self, names: Iterable[str]):
        for name in names:
            self.ended[name] = self.steps
            yield self._running.pop(name)


def answer_from_there(request: Request) -> Completion:
    """As `answer`; a rollout that goes on ends where its own seed would have ended it. Log-probs name the part."""
    if not request.id.startswith("rollout"):
        return answer(request)
    end = request.prompt_ids.index(*tokenizer().encode("\n", add_special_tokens=False)) + 1
    written = len(request.prompt_ids) - end
    prompt = replace(request, prompt_ids=request.prompt_ids[:end], max_tokens=written + request.max_tokens)
    whole = answer(prompt)
    rest = whole.token_ids[written:] or (tokenizer().eos_token_id,)
    part = int(request.id.partition("-part-")[2] or 0)
    finished = whole.finished or written >= len(whole.token_ids)
    return Completion(request.id, rest, (-0.5 - part / 64,) * len(rest), "", finished)
