"""What goes into the engine and comes out of it: prompts -> rollouts, rollouts -> critiques.

Every request's seed is a function of the run's seed and of what the request is, so a resumed run repeats it exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from capo_fast.config import Config
from capo_fast.credit.critic import parse_critique, render_critique_prompt
from capo_fast.credit.steps import step_spans
from capo_fast.engine.base import Engine, run_requests
from capo_fast.records import Answer, Completion, Critique, Prompt, Request, Rollout


def request_seed(*key: object) -> int:
    """63 bits made of the key alone.

    >>> request_seed(0, "rollout-3-0-1", "gsm8k-7") == request_seed(0, "rollout-3-0-1", "gsm8k-7")
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample_rollouts(
    engine: Engine, tokenizer: Any, prompts: Mapping[int, Prompt], step: int, config: Config
) -> list[Rollout]:
    """`rollout.n` rollouts of each prompt, by group index, in the order (group, sample).

    `step` counts from 1: its rollouts are written by the policy of version `step - 1`.
    """
    settings = config.rollout
    members = {f"rollout-{step}-{group}-{i}": (group, i) for group in prompts for i in range(settings.n)}
    requests = [
        Request(
            id=name,
            prompt_ids=prompts[group].token_ids,
            seed=request_seed(config.seed, name, prompts[group].id),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
        )
        for name, (group, i) in members.items()
    ]
    answers = run_requests(engine, requests)
    return [
        Rollout(
            prompt=prompts[group],
            group=group,
            sample=i,
            version=step - 1,
            token_ids=answers[name].token_ids,
            logprobs=answers[name].logprobs,
            text=answers[name].text,
            finished=answers[name].finished,
            steps=step_spans(answers[name].token_ids, tokenizer),
        )
        for name, (group, i) in members.items()
    ]


def critique_rollouts(
    engine: Engine, tokenizer: Any, template: str, rollouts: Sequence[Rollout], config: Config
) -> list[tuple[Critique, ...]]:
    """`critic.votes` critiques of each rollout, in its order. The critic is shown exactly the rollout's own steps.

    Where the engine has no room for the prompt and an answer, the critiques are truncated abstentions.
    """
    prompts = [
        critique_prompt_ids(tokenizer, template, r.prompt.problem, r.steps.texts, r.prompt.solution) for r in rollouts
    ]
    room = critique_room(config)
    greedy = config.critic.voting == "greedy"
    requests = [
        critique_request(critique_id(rollout, vote), rollout.prompt.id, prompt_ids, config, greedy)
        for rollout, prompt_ids in zip(rollouts, prompts, strict=True)
        for vote in range(config.critic.votes)
        if len(prompt_ids) <= room
    ]
    answers = run_requests(engine, requests)
    names = [[critique_id(rollout, vote) for vote in range(config.critic.votes)] for rollout in rollouts]
    return [
        tuple(read_critique(answers.get(name), len(rollout.steps.texts)) for name in votes)
        for rollout, votes in zip(rollouts, names, strict=True)
    ]


def critique_room(config: Config) -> int:
    """The longest prompt of a critique that leaves room for its answer, in tokens."""
    return config.engine.max_model_len - config.critic.max_tokens


def critique_prompt_ids(
    tokenizer: Any, template: str, problem: str, steps: Sequence[str], solution: str | None
) -> tuple[int, ...]:
    """The critic's prompt for one solution, as one user message under the chat template."""
    message = render_critique_prompt(template, problem, steps, solution, special_tokens(tokenizer))
    chat = [{"role": "user", "content": message}]
    return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """What the tokenizer doesn't read as text: its special tokens, and added ones that look like tags (`<think>`)."""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(token.content for token in added if token.special or token.content.startswith("<"))


def critique_request(name: str, prompt_id: str, prompt_ids: tuple[int, ...], config: Config, greedy: bool) -> Request:
    return Request(
        id=name,
        prompt_ids=prompt_ids,
        seed=request_seed(config.seed, name, prompt_id),
        temperature=0.0 if greedy else config.critic.temperature,
        top_p=1.0 if greedy else config.critic.top_p,
        top_k=-1,
        max_tokens=config.critic.max_tokens,
    )


def critique_id(rollout: Rollout, vote: int) -> str:
    return f"critique-{rollout.version}-{rollout.group}-{rollout.sample}-{vote}"


def read_critique(answer: Completion | Answer | None, steps: int) -> Critique:
    """A critique of so many steps, parsed; None, for which there was no room, is a truncated abstention."""
    if answer is None:
        return Critique(abstained=True, wrong_steps=frozenset(), dropped=0, truncated=True)
    return parse_critique(answer.text, steps, answer.finished)
