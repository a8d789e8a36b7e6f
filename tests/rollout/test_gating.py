"""Gates of the critic: equal prefixes, groups, a budget, and settled votes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from decoding_engine import DecodingEngine
from sampling_rounds import CONFIG, PROMPTS, TEMPLATE, critiques_in, generate, with_
from scripted_world import answer, answer_steps, scripted_config, tokenizer

from capo_fast.config.schema import Config
from capo_fast.credit.estimators.answer_probability import starts_of
from capo_fast.credit.groups import step_ends
from capo_fast.records import Completion, Request, Sample
from capo_fast.rollout.critiquing import Critiquing
from capo_fast.rollout.dealing import deal_rollouts
from capo_fast.rollout.gating import Gate, gate_metrics
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.ranks import ranks
from capo_fast.tiny.task import right_steps, true_wrong_steps
from capo_fast.verify import VerifierPool

STEPS = scripted_config(
    *("--critic.mode", "self", "--critic.votes", "2", "--critic.reads", "step", "--critic.step.temperature", "1")
)


def gated(**gate):
    return with_(STEPS, critic={"gate": replace(STEPS.critic.gate, **gate)})


@pytest.fixture(scope="module")
def pool():
    with ranks(), VerifierPool(1, 5.0, "reward_functions:tiny_answer") as pool:
        yield Rewards((pool,))


def varying_verdict(request):
    """Critiques whose verdict depends on the vote."""
    if not request.id.startswith("critique"):
        return answer(request)
    return replace(answer_steps(request), text=Random(request.seed).choice(["8 Yes", "8 No", "8"]))


def prefixes(samples):
    """Per sample, the problem id and the tokens up to the end of each step."""
    return [[(s.rollout.prompt.id, s.rollout.token_ids[:end]) for end in step_ends(s.rollout)] for s in samples]


def by_group(samples):
    found = {}
    for sample in samples:
        found.setdefault(sample.rollout.group, []).append(sample)
    return found


def test_a_step_is_judged_once_per_prefix(pool):
    engine = DecodingEngine(answer_steps)
    generation = generate(pool, STEPS, engine)
    samples, traffic = generation.samples(), generation.traffic
    places = [place for each in prefixes(samples) for place in each]
    assert len(critiques_in(engine)) == traffic.critiques == 2 * len(set(places)) < 2 * len(places)
    for sample in samples:
        wrong = true_wrong_steps(sample.rollout.prompt.problem, sample.rollout.steps.texts)
        assert {k for k, vote in enumerate(sample.step_wrong) if vote} == wrong
        assert [each.wrong_steps for each in sample.critiques] == [wrong, wrong]
        # A step's critique text is shown with the step (`credit.process: critique-ratio` puts it into a prompt).
        named = [line.partition(":")[0] for line in sample.critiques[0].text.splitlines()]
        assert named == [f"step_{step}" for step in range(len(sample.rollout.steps.texts))]
    assert any(sum(sample.step_wrong) for sample in samples)
    whole = [tuple(each) for each in prefixes(samples)]
    equal = [each for number, each in enumerate(whole) if each in whole[:number]]
    assert traffic.shared == len(equal)
    assert traffic.critiques + traffic.gated_prefix == 2 * len(places) and traffic.gated_prefix > 0


def test_only_groups_with_a_wrong_answer_are_read(pool):
    def write(request):
        if not request.id.startswith("rollout-7-6"):
            return answer_steps(request)
        ids = tokenizer().encode("\n\n".join(right_steps(PROMPTS[6].problem)), add_special_tokens=False)
        return Completion(request.id, tuple(ids), (-0.5,) * len(ids), tokenizer().decode(ids), True)

    engine, config = DecodingEngine(write), gated(groups="any-wrong")
    generation = generate(pool, config, engine)
    groups = by_group(generation.samples())
    wrong = {group for group, found in groups.items() if any(each.outcome < 1 for each in found)}
    assert wrong == {3, 5}
    assert {int(name.split("-")[2]) for name in critiques_in(engine)} == wrong
    assert all((each.critiques == ()) == (each.rollout.group not in wrong) for each in generation.samples())
    right = [place for g in set(groups) - wrong for each in prefixes(groups[g]) for place in each]
    assert generation.traffic.gated_groups == 2 * len(set(right)) > 0
    figures = gate_metrics(
        generation.traffic, with_(STEPS, critic={"gate": replace(STEPS.critic.gate, groups="any-wrong")})
    )
    tokens = STEPS.critic.max_tokens  # per critique
    assert figures["critic/saved_tokens"] == tokens * (figures["critic/gated_groups"] + figures["critic/gated_prefix"])
    assert gate_metrics(generation.traffic, CONFIG) == {}


def test_steps_of_right_answers_are_sound_without_a_request(pool):
    engine = DecodingEngine(answer_steps)
    generation = generate(pool, gated(trust_right=True), engine)
    samples = generation.samples()
    right = {place for s, each in zip(samples, prefixes(samples), strict=True) if s.outcome == 1 for place in each}
    doubtful = {place for each in prefixes(samples) for place in each} - right
    assert right and len(critiques_in(engine)) == 2 * len(doubtful) > 0
    assert all(sample.step_wrong == (0.0,) * len(sample.step_wrong) for sample in samples if sample.outcome == 1)


@pytest.mark.parametrize("tokens", [16, 60, 100])
def test_a_budget_is_kept_and_spent_on_whole_groups_only(pool, tokens):
    generation = generate(pool, gated(tokens=tokens), DecodingEngine(answer_steps))
    groups, traffic = by_group(generation.samples()), generation.traffic
    costs = {g: 4 * len({place for each in prefixes(found) for place in each}) for g, found in groups.items()}
    read = {group for group, found in groups.items() if any(each.critiques for each in found)}
    assert traffic.critique_tokens == sum(costs[group] for group in read) <= tokens
    assert 2 * traffic.gated_budget == sum(costs[group] for group in set(groups) - read)
    assert all(cost > tokens - traffic.critique_tokens for group, cost in costs.items() if group not in read)
    again = generate(pool, gated(tokens=tokens), DecodingEngine(answer_steps))
    assert again.samples() == generation.samples()
    # The budget is per step, so earlier rounds count against it.
    later = generate(pool, gated(tokens=tokens + 30), DecodingEngine(answer_steps), spent=30)
    assert later.samples() == generation.samples()


@pytest.mark.parametrize("voting", ["intersection", "majority"])
def test_settled_votes_equal_the_votes_of_all_critiques(pool, voting):
    full = with_(STEPS, critic={"votes": 5, "voting": voting})
    adaptive = with_(gated(adaptive=True), critic={"votes": 5, "voting": voting})
    all_votes, settled = (generate(pool, each, DecodingEngine(varying_verdict)) for each in (full, adaptive))
    assert [each.step_wrong for each in settled.samples()] == [each.step_wrong for each in all_votes.samples()]
    assert any(sum(each.step_wrong) for each in settled.samples())
    saved = settled.traffic.gated_votes
    assert settled.traffic.critiques + saved == all_votes.traffic.critiques and saved > 0


def test_an_unmixed_group_is_read_if_the_answer_s_probability_changes(pool):
    prompts, scored = {8: replace(PROMPTS[6], answer="00"), 9: replace(PROMPTS[3], answer="00")}, []

    def write(request):
        if not request.scored:
            return answer_steps(request)
        scored.append((request.prompt_ids, request.scored))
        text = tokenizer().decode(request.prompt_ids)
        logprob = math.log(0.9 if text.startswith(PROMPTS[3].problem) and "=" in text else 0.5)
        return Completion(request.id, (1,) * request.scored, (logprob,) * request.scored, "", True, prompt_tokens=7)

    engine = DecodingEngine(write)
    generation = generate(pool, gated(groups="mixed", ambiguous=0.3), engine, prompts=prompts)
    assert {int(name.split("-")[2]) for name in critiques_in(engine)} == {9}
    assert generation.traffic.profile_tokens > 0
    starts = [start for each in generation.samples() for start in starts_of(each.rollout)]
    assert len(scored) == len(set(scored)) == len(set(starts)) < len(starts)


@dataclass
class Ranks:
    """Ranks in threads, each with its own engine. Each judges its share of the same samples."""

    config: Config
    samples: list[Sample]
    write: Callable[[Request], Completion]
    traffic: Traffic = field(default_factory=Traffic)
    """Sum over all judging ranks."""
    sent: dict[tuple[int, bool], list[str]] = field(default_factory=dict)
    """Critique ids of each rank in order, by (share, judges)."""

    def read(self, count: int, slices: int = 1) -> list[Sample]:
        """The samples with their critiques. slices: ranks per engine, of which one judges."""
        shares = deal_rollouts(PROMPTS, self.config.rollout.n, {}, count)
        self._barrier, self._parts = threading.Barrier(count * slices, timeout=30), {}
        places = [(share, slice_ == 0) for share in range(count) for slice_ in range(slices)]
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(places)) as pool:
            patch.setattr("capo_fast.rollout.gating.gather", self._gather)
            found = list(pool.map(lambda place: self._rank(place, shares[place[0]]), places))
        self.traffic = sum((traffic for _, traffic in found), Traffic())
        judged = [each for samples, _ in found for each in samples]
        return sorted(judged, key=lambda each: (each.rollout.group, each.rollout.sample))

    def _gather(self, items):
        self._parts[threading.get_ident()] = items
        self._barrier.wait()
        found = [item for _, part in sorted(self._parts.items()) for item in part]
        self._barrier.wait()
        return found

    def _rank(self, place, share):
        judges, engine = place[1], DecodingEngine(self.write)
        mine = [each for each in self.samples if (each.rollout.group, each.rollout.sample) in share]
        outcomes = {(each.rollout.group, each.rollout.sample): each.outcome for each in mine}
        stream, builder = Stream(engine, engine), RequestBuilder(tokenizer(), TEMPLATE, self.config)
        critiquing = Critiquing(stream, builder)
        gate = Gate(stream, builder, critiquing, 1, judges)
        chosen = gate.choose([each.rollout for each in mine], lambda: outcomes if judges else {})
        gate.ask(chosen, lambda rollouts: list(map(critiquing.ask, rollouts)), lambda: finish(stream, critiquing))
        critiquing.finish()
        self.sent[place] = list(engine.entered)
        if not judges:
            return [], Traffic()
        found = map(critiquing.result, (each.rollout for each in mine))
        return [replace(s, critiques=c, step_wrong=v) for s, (c, v) in zip(mine, found, strict=True)], stream.traffic


def finish(stream, critiquing):
    while stream.critiques:
        for completion in stream.advance():
            critiquing.note(completion)


def test_the_number_of_ranks_makes_no_difference(pool):
    """Training deals a group's rollouts to both ranks; steps that these share are still judged once."""
    samples = generate(pool, with_(STEPS, credit={"process": "none"})).samples()
    for gate in ({"trust_right": True}, {"groups": "any-wrong", "adaptive": True}, {"groups": "mixed", "tokens": 80}):
        alone, two = (Ranks(with_(gated(**gate), critic={"votes": 3}), samples, varying_verdict) for _ in range(2))
        assert alone.read(1) == two.read(2), gate
        assert all(two.sent.values()) and counted(two.traffic) == counted(alone.traffic)


def counted(traffic):
    names = ("critiques", "gated_groups", "gated_prefix", "gated_sound", "gated_votes", "gated_budget")
    return {name: getattr(traffic, name) for name in names}


def test_ranks_that_share_an_engine_send_it_the_same_requests(pool):
    samples = generate(pool, with_(STEPS, credit={"process": "none"})).samples()
    whole, sliced = (Ranks(gated(groups="any-wrong", trust_right=True), samples, varying_verdict) for _ in range(2))
    assert sliced.read(2, slices=2) == whole.read(2)
    assert all(sliced.sent[share, True] == sliced.sent[share, False] == whole.sent[share, True] for share in (0, 1))


def test_a_group_without_a_verdict_does_not_count_in_the_budget(pool):
    rollouts = [each.rollout for each in generate(pool, with_(STEPS, credit={"process": "none"})).samples()]
    engine = DecodingEngine(answer_steps)
    stream, builder = Stream(engine, engine), RequestBuilder(tokenizer(), TEMPLATE, gated(tokens=60))
    critiquing = Critiquing(stream, builder)
    gate = Gate(stream, builder, critiquing, step=1, judges=True)
    outcomes = {(each.group, each.sample): None for each in rollouts}
    gate.ask(gate.choose(rollouts, lambda: outcomes), None, lambda: None)
    assert (stream.traffic.gated_budget, stream.traffic.gated_groups) == (0, critiquing.wanted(rollouts))
