"""Rules of the critic's requests: gates that would have no effect, or would change the votes."""

from __future__ import annotations

from capo_fast.config.learning_rules import Rules
from capo_fast.config.schema import Config


def greedy_vote(config: Config) -> Rules:
    critic = config.critic
    yield (
        critic.voting == "greedy" and critic.votes != 1,
        f"critic.votes: found {critic.votes}, wanted 1 with critic.voting: greedy (one critique at temperature 0)",
    )


def equal_votes(config: Config) -> Rules:
    critic = config.critic
    yield (
        critic.temperature == 0 and critic.votes != 1 and critic.voting != "greedy",
        f"critic.votes: found {critic.votes}, wanted 1 with {critic.key_of('temperature')}: 0, which makes all "
        "votes equal",
    )


def reads(config: Config) -> Rules:
    """Valid combinations of verdict and judged text. A command that scores a critic has these rules, too."""
    critic, whole = config.critic, config.credit.process == "outcome"
    yield critic.reads == "step" and whole, "critic.reads: found step, wanted solution with credit.process: outcome"
    yield (
        critic.verdict == "yes-no" and critic.reads == "solution" and not whole,
        "critic.verdict: found yes-no, wanted capo or fapo with critic.reads: solution: it names no step",
    )


def gate(config: Config) -> Rules:
    yield from _ambiguous(config)
    yield from _trust_right(config)
    yield from _adaptive(config)
    yield from _tokens(config)


def _ambiguous(config: Config) -> Rules:
    gate, when = config.critic.gate, config.credit.when
    if gate.ambiguous is None:
        return
    found = f"critic.gate.ambiguous: found {gate.ambiguous:g}, wanted none with "
    yield gate.groups == "all", f"{found}critic.gate.groups: all, which reads every group"
    yield (
        when == "mixed-groups",
        f"{found}credit.when: mixed-groups: it would add groups that are not mixed, and these are not read",
    )
    yield (
        (gate.groups, when) == ("any-wrong", "wrong-answers"),
        f"{found}credit.when: wrong-answers and critic.gate.groups: any-wrong: it would add groups without a wrong "
        "answer",
    )


def _trust_right(config: Config) -> Rules:
    critic, credit = config.critic, config.credit
    if not critic.gate.trust_right:
        return
    found = "critic.gate.trust_right: found true, wanted false with "
    yield (
        critic.reads == "solution",
        f"{found}critic.reads: solution, which judges no single step; credit.when: wrong-answers skips right answers",
    )
    yield (
        credit.process == "flawed-answers" and credit.fn is None,
        f"{found}credit.process: flawed-answers: a right answer without a wrong step is never flawed",
    )
    yield (
        credit.when in ("right-answers", "wrong-answers"),
        f"{found}credit.when: {credit.when}: it combines right and wrong answers of a group, and only one kind is read",
    )
    yield not critic.judge_once, f"{found}critic.judge_once: false, with which rollouts share no step"


def _adaptive(config: Config) -> Rules:
    needs_all = {
        "credit.process: outcome, which takes the mean of all judgments": config.credit.process == "outcome",
        "critic.voting: average, which takes the mean of all votes": config.critic.voting == "average",
    }
    for name, found in needs_all.items():
        yield (
            config.critic.gate.adaptive and found,
            f"critic.gate.adaptive: found true, wanted false with {name}",
        )


def _tokens(config: Config) -> Rules:
    """Groups are planned at their longest critiques; below that, only one with many equal rollouts would be read."""
    critic, tokens = config.critic, config.critic.gate.tokens
    least = config.rollout.n * critic.votes * critic.max_tokens
    of_steps = " per step of its rollouts" if critic.reads == "step" else ""
    yield (
        tokens is not None and tokens < least,
        f"critic.gate.tokens: found {tokens}, wanted at least rollout.n * critic.votes * "
        f"{critic.key_of('max_tokens')} ({least}), the largest cost of a group{of_steps}",
    )
