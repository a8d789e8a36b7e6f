"""Requests to the engine and their answers: prompts -> rollouts, rollouts -> critiques.

Every request's seed is a function of the run's seed and of the request, so a resumed run repeats it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from capo_fast.config.schema import Config
from capo_fast.credit.critique_prompt import render_critique_prompt
from capo_fast.credit.groups import step_ends
from capo_fast.credit.neutralise import COMMON_SPECIAL_TOKENS
from capo_fast.credit.steps import step_spans
from capo_fast.credit.verdicts import VERDICTS, Parse
from capo_fast.data import ChatTemplate
from capo_fast.records import Completion, Critique, Prompt, Request, Rollout
from capo_fast.rollout.carry import OpenGroup, Partial
from capo_fast.runtime.digest import seed_of


@dataclass(frozen=True)
class RequestBuilder:
    """Builds requests from prompts and rollouts, and rollouts and critiques from the answers."""

    tokenizer: Any
    template: str
    """Template of the critic's prompt."""
    config: Config
    critic_tokens: tuple[str, ...] = ()
    """Special tokens of a critic with another tokenizer, neutralised in addition to the policy's."""

    def rollout_request(self, prompt: Prompt, group: int, sample: int, step: int) -> Request:
        settings, name = self.config.rollout, rollout_id(step, group, sample)
        return Request(
            id=name,
            prompt_ids=prompt.token_ids,
            seed=seed_of(self.config.seed, name, prompt.id),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
        )

    def next_request(self, prompt: Prompt, of: OpenGroup, sample: int) -> Request:
        """The request for the rest of a rollout after its tokens so far; the first one is its `rollout_request`."""
        so_far = of.rollouts[sample]
        first = self.rollout_request(prompt, of.group, sample, of.step)
        if not so_far.requests:
            return first
        name = f"{first.id}-part-{so_far.requests}"
        return replace(
            first,
            id=name,
            prompt_ids=prompt.token_ids + so_far.token_ids,
            seed=seed_of(self.config.seed, name, prompt.id),
            max_tokens=first.max_tokens - len(so_far.token_ids),
        )

    def read_partial(self, found: Partial, prompt: Prompt, group: int, sample: int) -> Rollout:
        """A finished rollout, of the group with this index in its step."""
        text = self.tokenizer.decode(found.token_ids, skip_special_tokens=True)
        answer = Completion("", found.token_ids, found.logprobs, text, found.finished)
        rollout = self.read_rollout(answer, prompt, group, sample, found.versions[-1][0])
        return replace(rollout, earlier=found.versions[:-1])

    def read_rollout(self, answer: Completion, prompt: Prompt, group: int, sample: int, version: int) -> Rollout:
        """version: of the policy that wrote the answer."""
        return Rollout(
            prompt=prompt,
            group=group,
            sample=sample,
            version=version,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            text=answer.text,
            finished=answer.finished,
            steps=step_spans(answer.token_ids, self.tokenizer),
        )

    def critique_requests(self, rollout: Rollout, step: int | None = None, version: int | None = None) -> list[Request]:
        """`critic.votes` requests, on exactly the rollout's steps; none if the engine has no room for an answer.

        step: the judged step, the last one in the prompt; None: all are judged. version: of the policy in training;
        None: of the one that wrote the rollout, an earlier one if it was carried over.

        They differ only in the seed, so that all votes share the keys and values of one prompt. If equal rollouts, or
        steps, share critiques, the seeds depend only on the shared tokens, so the choice among them has no effect.
        """
        critic, message = self.config.critic, self._critique_message(rollout, step)
        prompt_ids = () if critic.at_server else self._critic_chat.ids([("user", message)])
        if len(prompt_ids) > critique_room(self.config) and not critic.at_server:
            return []
        common = rollout.version if version is None else version, judged_tokens(rollout, step)
        requests = []
        for vote in range(critic.votes):
            name = critique_id(rollout, vote, step)
            seed = seed_of(self.config.seed, (common, vote) if critic.judge_once else name, rollout.prompt.id)
            requests.append(critique_request(name, seed, prompt_ids, self.config, critic.voting == "greedy", message))
        return requests

    def _critique_message(self, rollout: Rollout, step: int | None) -> str:
        prompt, steps = rollout.prompt, rollout.steps.texts[: None if step is None else step + 1]
        texts = shown_steps(steps, self.config)
        return render_critique_prompt(self.template, prompt.problem, texts, prompt.solution, self._neutralised)

    @cached_property
    def _neutralised(self) -> tuple[str, ...]:
        """Texts that no critic may parse as its special tokens."""
        return (*special_tokens(self.tokenizer), *self.critic_tokens)

    @cached_property
    def _critic_chat(self) -> ChatTemplate:
        return critic_chat(self.config, self.tokenizer)

    def score_request(self, name: str, before: tuple[int, ...], tokens: tuple[int, ...]) -> Request:
        """The request for the log-probs of tokens after others."""
        ids, seed = before + tokens, seed_of(self.config.seed, name)
        return Request(name, ids, seed, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=1, scored=len(tokens))

    def continuation_request(
        self, name: str, prompt: Prompt, response: tuple[int, ...], sample: int, step: int
    ) -> Request:
        """The request for the rest of a response. Its seed depends on the tokens so far, not on its name."""
        first = self.rollout_request(prompt, 0, sample, step)
        seed = seed_of(self.config.seed, "continuation", step, sample, response, prompt.id)
        left = first.max_tokens - len(response)
        return replace(first, id=name, prompt_ids=prompt.token_ids + response, seed=seed, max_tokens=left)

    def user_prompt(self, text: str) -> tuple[int, ...]:
        """The policy's prompt with this text as the user's message."""
        return self._policy_chat.ids([("user", text)])

    @cached_property
    def _policy_chat(self) -> ChatTemplate:
        data = self.config.data
        return ChatTemplate(self.tokenizer, data.system_prompt, data.date, data.template_kwargs)

    @property
    def parse(self) -> Parse:
        """The parser of critiques."""
        verdict = VERDICTS[self.config.critic.verdict]
        return verdict.whole if self.config.judges_as_one else verdict.steps


def rollout_id(step: int, group: int, sample: int) -> str:
    return f"rollout-{step}-{group}-{sample}"


def shown_steps(steps: Sequence[str], config: Config) -> list[str]:
    """The texts of a solution's steps for the critic's prompt, before its template neutralises them."""
    return list(map(VERDICTS[config.critic.verdict].shown, steps))


def critique_room(config: Config) -> int:
    """Tokens of the longest critique prompt that leaves room for its answer."""
    return config.engine.max_model_len - config.critic.max_tokens


def critic_chat(config: Config, tokenizer: Any) -> ChatTemplate:
    """The chat template of critiques, with the date and the arguments of the settings."""
    return ChatTemplate(tokenizer, date=config.data.date, arguments=config.critic.template_kwargs)


def critique_prompt_ids(
    chat: ChatTemplate, template: str, problem: str, steps: Sequence[str], solution: str | None
) -> tuple[int, ...]:
    """The critic's prompt for one solution, as one user message under the chat template."""
    return chat.ids([("user", critique_message(chat.tokenizer, template, problem, steps, solution))])


def critique_message(tokenizer: Any, template: str, problem: str, steps: Sequence[str], solution: str | None) -> str:
    """The critic's prompt for one solution, as text."""
    return render_critique_prompt(template, problem, steps, solution, special_tokens(tokenizer))


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Tokens that a critic's tokenizer may not parse as text: this one's special tokens, added ones in the form of tags
    (`<think>`), and the common ones of others."""
    added = tokenizer.added_tokens_decoder.values()
    own = (token.content for token in added if token.special or token.content.startswith("<"))
    return tuple(dict.fromkeys((*own, *COMMON_SPECIAL_TOKENS)))


def critique_request(
    name: str, seed: int, prompt_ids: tuple[int, ...], config: Config, greedy: bool, message: str = ""
) -> Request:
    return Request(
        id=name,
        prompt_ids=prompt_ids,
        seed=seed,
        temperature=0.0 if greedy else config.critic.temperature,
        top_p=1.0 if greedy else config.critic.top_p,
        top_k=-1,
        max_tokens=config.critic.max_tokens,
        base=config.critic.mode == "frozen",
        message=message,
        regex=_regex(config) if config.critic.structured else None,
        stop=config.critic.stop,
    )


def _regex(config: Config) -> str:
    verdict = VERDICTS[config.critic.verdict]
    return verdict.whole_regex if config.judges_as_one else verdict.regex


def critique_id(rollout: Rollout, vote: int, step: int | None = None) -> str:
    name = f"critique-{rollout.version}-{rollout.group}-{rollout.sample}-{vote}"
    return name if step is None else f"{name}-step-{step}"


def judged_tokens(rollout: Rollout, step: int | None) -> tuple[int, ...]:
    """The response up to the end of the judged step; None: all of it."""
    return rollout.token_ids if step is None else rollout.token_ids[: step_ends(rollout)[step]]


def read_critique(answer: Completion | None, steps: int, parse: Parse) -> Critique:
    """The parsed critique of `steps` steps; None (no room in the engine) is a truncated abstention."""
    if answer is None:
        return Critique.absent(truncated=True)
    if answer.error is not None:
        return Critique.absent(failed=True)
    return parse(answer.text, steps, answer.finished)
