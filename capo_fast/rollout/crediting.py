"""The credit of a rank's whole groups: the call of the estimator, its queries to the engine, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capo_fast.config.schema import Config
from capo_fast.credit.assign import credited_samples
from capo_fast.credit.estimate import Estimator, check_questions
from capo_fast.credit.groups import Answers, Asked, Continuation, CreditError, Suffix, groups_of
from capo_fast.credit.schedule import schedule_metrics
from capo_fast.engine.base import Completer, run_requests
from capo_fast.exchange.figures import Figures
from capo_fast.records import Completion, CreditedSample, Request, Sample
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.stream import Summed
from capo_fast.verify.functions import Item, item_of


@dataclass(frozen=True)
class CreditCost(Summed):
    """The cost of an estimator's queries to the engine."""

    requests: int = 0
    tokens: int = 0
    """Tokens of prompts, scored suffixes and continuations."""
    written_tokens: int = 0
    """Tokens of continuations among these."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were cached."""
    shared: int = 0
    """Queries equal to an earlier one of the same list; equal ones share an answer."""
    without_room: int = 0
    """Queries that are too long for `engine.max_model_len` or for a rollout."""
    timeouts: int = 0
    """Continuations without a verdict."""


@dataclass
class Crediting:
    """Credits the whole groups of this rank."""

    config: Config
    estimator: Estimator
    engine: Completer
    rewards: Rewards
    requests: RequestBuilder

    def credit(self, samples: Sequence[Sample], step: int) -> tuple[list[CreditedSample], CreditCost]:
        """Samples that form consecutive whole groups, in order, with their credit. step: of training, from 1. Raises
        CreditError."""
        if not samples:  # a rank may have no group
            return [], CreditCost()
        groups, answerer = groups_of(samples), QueryAnswerer(self, step)
        found = self.estimator(groups, self._parts(), answerer)
        return credited_samples(groups, found, self.config, step), answerer.cost

    def check_kind(self, figures: Sequence[Figures]) -> None:
        """Raises CreditError if rollouts of one step, over all ranks and rounds, have credit of both kinds."""
        kinds = {each.by_token: each.group for each in figures}
        if len(kinds) > 1:
            raise CreditError(
                f"{self.estimator.name}: found TokenCredit of group {kinds[True]} and StepCredit of group "
                f"{kinds[False]}, wanted one of them for all groups of a step"
            )

    def metrics(self, figures: Sequence[Figures], cost: CreditCost, step: int) -> dict[str, float]:
        """Metrics of all of a step's rollouts; {} without queries and with constant P."""
        # All floats, as a checkpoint (`engine.ranks`) restores them.
        found = {f"credit/{name}": float(value) for name, value in vars(cost).items()} if self.estimator.asks else {}
        verdicts: dict[int, list[float | None]] = {}
        for each in figures:
            verdicts.setdefault(each.group, []).append(each.outcome)
        return found | schedule_metrics(list(verdicts.values()), self.config, step)

    def _parts(self) -> dict[str, object]:
        builder = self.requests
        return {"config": self.config, "tokenizer": builder.tokenizer, "chat": builder.user_prompt}


class QueryAnswerer:
    """Answers an estimator's queries, one list at a time; equal ones in a list are sent once."""

    def __init__(self, of: Crediting, step: int) -> None:
        self._of, self._step = of, step
        self.cost = CreditCost()

    def __call__(self, queries: Sequence[Asked]) -> Answers:
        """Raises CreditError for anything but a list of queries."""
        check_questions(queries)
        once = dict.fromkeys(queries)
        fits = [each for each in once if self._has_room(each)]
        requests = {each: self._request(each, number) for number, each in enumerate(fits)}
        completions = run_requests(self._of.engine, requests.values())
        found = {each: completions[request.id] for each, request in requests.items()}
        self.cost += CreditCost(
            requests=len(found),
            tokens=sum(each.prompt_tokens + each.tokens for each in found.values()),
            written_tokens=sum(answer.tokens for each, answer in found.items() if isinstance(each, Continuation)),
            cached_tokens=sum(each.cached_tokens for each in found.values()),
            shared=len(queries) - len(once),
            without_room=len(once) - len(fits),
        )
        return self._read(queries, found)

    def _read(self, queries: Sequence[Asked], found: dict[Asked, Completion]) -> Answers:
        verdicts = self._judge({each: answer for each, answer in found.items() if isinstance(each, Continuation)})
        logprobs = {each: answer.logprobs for each, answer in found.items() if isinstance(each, Suffix)}
        return [verdicts.get(each) if isinstance(each, Continuation) else logprobs.get(each) for each in queries]

    def _has_room(self, query: Asked) -> bool:
        config = self._of.config
        if isinstance(query, Continuation):
            return len(query.response) < config.rollout.max_tokens
        return len(query.before) + len(query.tokens) < config.engine.max_model_len

    def _request(self, query: Asked, number: int) -> Request:
        name = f"credit-{self._step}-{number}"
        if isinstance(query, Suffix):
            return self._of.requests.score_request(name, query.before, query.tokens)
        return self._of.requests.continuation_request(name, query.prompt, query.response, query.sample, self._step)

    def _judge(self, found: dict[Continuation, Completion]) -> dict[Continuation, float | None]:
        """Their verdicts by `reward.fn`."""
        verdicts = self._of.rewards.answer.check([self._item(*each) for each in found.items()])
        self.cost += CreditCost(timeouts=verdicts.count(None))
        return {each: None if v is None else float(v) for each, v in zip(found, verdicts, strict=True)}

    def _item(self, query: Continuation, answer: Completion) -> Item:
        tokens = [*query.response, *answer.token_ids]
        text = self._of.requests.tokenizer.decode(tokens, skip_special_tokens=True)
        return item_of(text, query.prompt, query.prompt.columns, answer.finished)
