"""Rules of what the critic is asked: gates that would do nothing, or change what the votes of all critiques are."""

from __future__ import annotations

from capo_fast.config.learning_rules import Rules
from capo_fast.config.schema import Config


def reads(config: Config) -> Rules:
    """What a verdict can be of. A command that scores a critic has these rules, too."""
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
    yield gate.groups == "all", f"{found}critic.gate.groups: all, which leaves no group out"
    yield (
        when == "mixed-groups",
        f"{found}credit.when: mixed-groups: the groups that it would add are not mixed, and are not read",
    )
    yield (
        (gate.groups, when) == ("any-wrong", "wrong-answers"),
        f"{found}credit.when: wrong-answers and critic.gate.groups: any-wrong: the groups that it would add have no "
        "wrong answer",
    )


def _trust_right(config: Config) -> Rules:
    critic, credit = config.critic, config.credit
    if not critic.gate.trust_right:
        return
    found = "critic.gate.trust_right: found true, wanted false with "
    yield (
        critic.reads == "solution",
        f"{found}critic.reads: solution, which judges no step alone; credit.when: wrong-answers leaves right answers "
        "out",
    )
    yield (
        credit.process == "flawed-answers" and credit.fn is None,
        f"{found}credit.process: flawed-answers: a right answer without a wrong step is never flawed",
    )
    yield (
        credit.when in ("right-answers", "wrong-answers"),
        f"{found}credit.when: {credit.when}: it joins the right and the wrong answers of a group, and one kind is not "
        "read",
    )
    yield not critic.judge_once, f"{found}critic.judge_once: false, under which rollouts share no step"


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
    """A group is reckoned at its longest critiques: below that none is read unless many of its rollouts are equal."""
    critic, tokens = config.critic, config.critic.gate.tokens
    least = config.rollout.n * critic.votes * critic.max_tokens
    of_steps = ", and that for each step of its rollouts" if critic.reads == "step" else ""
    yield (
        tokens is not None and tokens < least,
        f"critic.gate.tokens: found {tokens}, wanted at least rollout.n * critic.votes * "
        f"{critic.key_of('max_tokens')} ({least}), what one group can cost{of_steps}",
    )
