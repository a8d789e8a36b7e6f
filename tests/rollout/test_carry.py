"""Rounds that stop before their last rollout: which rollouts stop, when, and how they continue."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import pytest
from decoding_engine import DecodingEngine, continue_answer
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_world import scripted_config, tokenizer

from capo_fast.credit.critic import load_template
from capo_fast.records import Completion, Prompt
from capo_fast.rollout.carry import OpenGroup, Partial, Quota, at_limit, carry_metrics, still_open
from capo_fast.rollout.carrying import EXCHANGE_STEPS, CarryingRound
from capo_fast.rollout.dealing import deal_open
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.stream import Stream
from capo_fast.runtime.ranks import EngineGroup, ranks
from capo_fast.verify import VerifierPool

WORDS = ("--rollout.carry", "true", "--rollout.n", "2", "--loss.is_mode", "truncate")
CONFIG = scripted_config(*WORDS, "--rollout.enough", "3", "--critic.mode", "self")
ALONE = EngineGroup(0, 1, True)
LENGTHS = {0: (4, 6), 1: (3, 30), 2: (5, 5), 3: (2, 12)}
"""Tokens of each rollout, by group: group 1 is the long one."""


def prompt(group):
    ids = tokenizer().encode(f"{group}+1\n", add_special_tokens=False)
    return Prompt(f"id-{group}", f"{group}+1", "0", None, tuple(ids))


PROMPTS = {group: prompt(group) for group in LENGTHS} | {9: prompt(1)}


def write(request):
    """The tokens that `LENGTHS` specifies, minus those already in the request."""
    if not request.id.startswith("rollout"):
        return continue_answer(request)
    group, sample = map(int, request.id.split("-")[2:4])
    tokens = LENGTHS[group][sample] - (len(request.prompt_ids) - len(PROMPTS[group].token_ids))
    part = int(request.id.partition("-part-")[2] or 0)
    return Completion(request.id, (5,) * (tokens - 1) + (tokenizer().eos_token_id,), (-1.0 - part,) * tokens, "", True)


@pytest.fixture(scope="module")
def rewards():
    with ranks(), VerifierPool(workers=1) as pool:
        yield Rewards((pool,))


def new_groups():
    return {group: OpenGroup(3, group, group, (Partial(),) * 2) for group in LENGTHS}


def round_of(rewards, groups, step=3, engine=None, engines=ALONE, config=CONFIG):
    engine = engine or DecodingEngine(write)
    members = deal_open(groups, PROMPTS, 2, {}, engines.count)[engines.index]
    builder = RequestBuilder(tokenizer(), load_template("tiny"), config)
    found = CarryingRound(Stream(engine, engine), rewards, builder, PROMPTS, members, step, step - 1, groups, engines)
    found.finish_rollouts()
    return found


def samples_of(found):
    found.choose()
    found.finish_critiques()
    return {(s.rollout.group, s.rollout.sample): s for s in found.samples()}


def test_all_but_the_long_group_are_judged_and_it_continues_in_the_next_step(rewards):
    engine = DecodingEngine(write)
    first = round_of(rewards, new_groups(), engine=engine)
    samples = samples_of(first)
    assert {group for group, _ in samples} == {0, 2, 3}
    assert engine.ended["rollout-3-1-1"] == 12, "the step in which the third group became complete"
    critiques = {name for name in engine.entered if name.startswith("critique")}
    assert {name.split("-")[2] for name in critiques} == {"0", "2", "3"}
    assert all(engine.entered[name] == max(LENGTHS[int(name.split("-")[2])]) for name in critiques)
    [kept] = carried = still_open(new_groups(), first.left())
    assert [(each.versions, each.ended, each.requests) for each in kept.rollouts] == [
        (((2, 3),), True, 1),
        (((2, 12),), False, 1),
    ]
    assert carry_metrics([], carried, 2, late=0)["rollout/carried_tokens"] == 15

    # In the next step its index changes; its name and seeds do not.
    engine = DecodingEngine(write)
    second = round_of(rewards, {9: kept}, step=4, engine=engine)
    assert list(engine.entered)[:1] == ["rollout-3-1-1-part-1"] and engine.ended["rollout-3-1-1-part-1"] == 30 - 12
    judged = samples_of(second)
    whole, resumed = judged[9, 0].rollout, judged[9, 1].rollout
    assert (whole.versions, resumed.versions) == (((2, 3),), ((2, 12), (3, 18)))
    assert resumed.logprobs == (-1.0,) * 12 + (-2.0,) * 18, "each token keeps its own"
    assert len(resumed.token_ids) == len(resumed.steps.starts) == 30 and resumed.finished
    assert resumed.text == tokenizer().decode(resumed.token_ids, skip_special_tokens=True)
    assert second.left() == []


def test_a_continued_request_has_its_own_seed_and_the_remaining_tokens():
    builder, prompt = RequestBuilder(tokenizer(), "", CONFIG), PROMPTS[1]
    parts = [Partial()]
    for tokens in (7, 0, 2):
        parts.append(parts[-1].extended(Completion("", (5,) * tokens, (0.0,) * tokens, "", False), 2, ended=False))
    requests = [builder.next_request(prompt, OpenGroup(3, 1, 0, (part,)), 0) for part in parts]
    assert requests[0] == builder.rollout_request(prompt, 1, 0, 3)
    assert len({request.seed for request in requests}) == len({request.id for request in requests}) == 4
    limit = CONFIG.rollout.max_tokens
    assert [request.max_tokens for request in requests] == [limit, limit - 7, limit - 7, limit - 9]
    assert requests[3].prompt_ids == prompt.token_ids + (5,) * 9
    assert parts[3].versions == ((2, 9),), "parts of one version are merged"


def test_a_group_at_its_limit_is_completed(rewards):
    old = Partial(((1, 2),), 1, False, False, (5, 5), (-1.0, -1.0))
    groups = new_groups() | {1: OpenGroup(2, 1, 1, (old, old))}
    assert at_limit(groups, 2, 2) == set() and at_limit(groups, 3, 2) == {1}
    found = round_of(rewards, groups, step=4)
    assert {group for group, _ in samples_of(found)} == {0, 1, 2, 3} and found.left() == []


GROUPS = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=2), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(GROUPS, st.integers(0, 9), st.sets(st.integers(0, 7)))
def test_at_most_the_limit_stays_open_and_at_least_one_group_is_complete(lengths, limit_open, must_end):
    must_end = {group for group in must_end if group < len(lengths)}
    groups = {group: OpenGroup(1, group, group, (Partial(),) * 2) for group in range(len(lengths))}
    quota, complete = Quota(groups, limit_open, must_end), set()
    for step in range(1, 10):
        if quota.met():
            break
        complete |= quota.note([(group, i) for group, pair in enumerate(lengths) for i in (0, 1) if pair[i] == step])
    assert complete == {group for group, pair in enumerate(lengths) if max(pair) < step or not quota._running[group]}
    assert complete and must_end <= complete and len(groups) - len(complete) <= limit_open


@dataclass(frozen=True)
class Meeting(EngineGroup):
    """`gather` of two engines in two threads."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))
    lists: dict = field(default_factory=dict)

    def gather(self, items):
        self.lists[self.index] = items
        self.barrier.wait()
        found = [*self.lists[0], *self.lists[1]]
        self.barrier.wait()
        return found


def test_two_engines_stop_after_the_same_number_of_steps_whichever_is_faster(rewards):
    groups, first = new_groups(), Meeting(0, 2, True)
    engines = [DecodingEngine(write), DecodingEngine(write)]
    pair, found = (first, replace(first, index=1)), {}

    def work(rank):
        found[rank] = round_of(rewards, groups, engine=engines[rank], engines=pair[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    left = [member for each in found.values() for member in each.left()]
    assert {group for (group, _), _ in left} == {1} and len(left) == 2
    assert engines[0].ended | engines[1].ended == {
        name: min(LENGTHS[int(name.split("-")[2])][int(name.split("-")[3])], EXCHANGE_STEPS)
        for engine in engines
        for name in engine.entered
        if name.startswith("rollout")
    }
    judged = [member for each in found.values() for member in samples_of(each)]
    assert sorted(judged) == [(group, sample) for group in (0, 2, 3) for sample in (0, 1)]


def test_continued_rollouts_start_first_and_finished_ones_are_dealt_last():
    stopped, ended = Partial(((1, 2),), 1), Partial(((1, 2),), 1, ended=True)
    groups = {0: OpenGroup(1, 5, 5, (ended, stopped)), 1: OpenGroup(1, 6, 6, (stopped, ended)), **{2: new_groups()[2]}}
    assert deal_open(groups, PROMPTS, 2, {}, 2) == [[(0, 1), (2, 0), (0, 0)], [(1, 0), (2, 1), (1, 1)]]


def test_a_reward_function_that_takes_lists_is_called_once_with_whole_groups(rewards):
    calls = []

    class Noting(Rewards):
        def submit(self, items):
            calls.append(len(items))
            return super().submit(items)

    round_of(Noting(rewards.pools, batch=True), new_groups())
    assert calls == [6]
