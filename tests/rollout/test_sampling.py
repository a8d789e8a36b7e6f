"""The stream of one step's requests: their order, their recipients and their costs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from decoding_engine import DecodingEngine
from sampling_rounds import CONFIG, PROMPTS, TEMPLATE, critiques_in, generate, judged_members, rollout_of, with_
from scripted_world import answer, tokenizer

from capo_fast.records import Completion
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream, Traffic
from capo_fast.runtime.ranks import ranks
from capo_fast.verify import VerifierPool


class RemoteCritic(DecodingEngine):
    """A remote critic whose answers arrive at the second poll after the request."""

    pause_s = 0.001

    def add(self, request):
        ids = tokenizer().encode(request.message, add_special_tokens=False)
        super().add(replace(request, prompt_ids=tuple(ids)))
        self._due[request.id] = self.steps + 2


@pytest.fixture(scope="module")
def pool():
    with ranks(), VerifierPool(workers=1) as pool:
        yield Rewards((pool,))


def test_critiques_are_added_in_the_step_in_which_their_rollout_ends(pool):
    engine = DecodingEngine()
    generate(pool, with_(critic={"judge_once": False}), engine)
    assert len(critiques_in(engine)) == 2 * 12
    assert all(engine.entered[name] == engine.ended[rollout_of(name)] for name in critiques_in(engine))
    assert len({engine.entered[name] for name in critiques_in(engine)}) > 2


@pytest.mark.parametrize(
    "changes",
    [{"critic": {"stream": False}}, {"critic": {"mode": "frozen"}}, {"credit": {"when": "wrong-answers"}}],
)
def test_without_streaming_critiques_wait_for_the_last_rollout(changes, pool):
    engine = DecodingEngine()
    generate(pool, with_(**changes), engine)
    last = max(step for name, step in engine.ended.items() if name.startswith("rollout"))
    assert {engine.entered[name] for name in critiques_in(engine)} == {last}


def test_samples_are_the_same_with_and_without_streaming(pool):
    streamed, waiting = (
        generate(pool, with_(critic={"judge_once": False, "stream": stream})).samples() for stream in (True, False)
    )
    assert streamed == waiting
    assert len(streamed) == 12 and any(sample.outcome == 1 for sample in streamed)
    assert any(sum(sample.step_wrong) for sample in streamed)


def test_equal_rollouts_are_judged_once(pool):
    engine = DecodingEngine()
    generation = generate(pool, engine=engine)
    samples = generation.samples()
    distinct = {(s.rollout.prompt.id, s.rollout.token_ids) for s in samples}
    assert len(critiques_in(engine)) == 2 * len(distinct) < 2 * len(samples)
    assert generation.traffic.shared == len(samples) - len(distinct) > 0
    by_text = {(s.rollout.prompt.id, s.rollout.token_ids): s.critiques for s in samples}
    assert all(s.critiques == by_text[s.rollout.prompt.id, s.rollout.token_ids] != () for s in samples)


def test_equal_tokens_of_two_problems_are_judged_twice(pool):
    same = Completion("", (5, 6, 7), (0.0,) * 3, "no", True)
    engine = DecodingEngine(lambda request: replace(same, id=request.id))
    generate(pool, engine=engine)
    assert len(judged_members(engine)) == len(PROMPTS)


def test_only_wrong_answers_are_judged(pool):
    engine = DecodingEngine()
    generation = generate(pool, with_(credit={"when": "wrong-answers"}, critic={"judge_once": False}), engine)
    wrong = {(s.rollout.group, s.rollout.sample) for s in generation.samples() if s.outcome == 0}
    assert judged_members(engine) == wrong and 0 < len(wrong) < 12
    assert generation.traffic.unread == 12 - len(wrong)
    assert all((s.critiques == ()) == (s.outcome == 1) for s in generation.samples())


def test_only_mixed_groups_are_judged(pool):
    engine = DecodingEngine()
    prompts = {**PROMPTS, 8: replace(PROMPTS[6], answer="none")}
    generation = generate(
        pool, with_(credit={"when": "mixed-groups"}, critic={"judge_once": False}), engine, None, prompts
    )
    outcomes = {group: {s.outcome for s in generation.samples() if s.rollout.group == group} for group in prompts}
    mixed = {group for group, found in outcomes.items() if len(found) > 1}
    assert outcomes[8] == {0.0} and mixed
    assert {group for group, _ in judged_members(engine)} == mixed
    assert len(judged_members(engine)) == 4 * len(mixed)


def test_equal_rollouts_share_seeds_so_that_judging_any_gives_the_same():
    rollout = RequestBuilder(tokenizer(), TEMPLATE, CONFIG).read_rollout(
        Completion("", (5, 6, 7), (0.0,) * 3, "no", True), PROMPTS[3], 3, 0, 6
    )
    others = [replace(rollout, sample=1), replace(rollout, token_ids=(5, 6, 8)), replace(rollout, version=7)]

    def seeds(of, judge_once, version=None):
        sampler = RequestBuilder(tokenizer(), TEMPLATE, with_(critic={"judge_once": judge_once}))
        return tuple(request.seed for request in sampler.critique_requests(of, version=version))

    assert seeds(rollout, True) == seeds(others[0], True)
    assert len({seeds(each, True) for each in (rollout, *others)}) == 3
    assert len({seeds(each, False) for each in (rollout, *others)}) == 3
    assert len(set(seeds(rollout, True))) == 2
    # The rollouts of a carried group may have ended under different versions of the policy.
    assert seeds(rollout, True, version=8) == seeds(others[2], True, version=8) != seeds(rollout, True)


def test_a_remote_critic_overlaps_by_the_answers_that_end_during_rollouts(pool):
    critic = RemoteCritic()
    generation = generate(pool, with_(critic={"mode": "endpoint"}), DecodingEngine(), critic)
    assert 0 < generation.traffic.overlapped_tokens < generation.traffic.critique_tokens


def test_idle_time_counts_only_while_the_engine_has_work(pool):
    class Slow(RemoteCritic):
        def step(self):
            time.sleep(0.01)
            return super().step()

    engine = DecodingEngine()
    generation = SamplingRound(
        Stream(engine, Slow()), pool, RequestBuilder(tokenizer(), TEMPLATE, with_(critic={"mode": "endpoint"})),
        PROMPTS, [(3, 0)], 7, 6,
    )  # fmt: skip
    time.sleep(0.3)
    generation.finish_rollouts()
    assert 0 < generation.traffic.idle_seconds - 0.01 * (engine.steps - 1) < 0.3


def test_a_rollout_whose_check_timed_out_is_not_judged(pool):
    class Late(VerifierPool):
        def check(self, pairs):
            return [None] * len(pairs)

    engine = DecodingEngine()
    with Late(workers=1) as late:
        generation = generate(Rewards((late,)), with_(credit={"when": "wrong-answers"}), engine)
    assert judged_members(engine) == set() and generation.traffic.unread == 12


def test_without_process_credit_no_critique_is_requested(pool):
    engine = DecodingEngine()
    generation = generate(pool, with_(credit={"process": "none"}), engine)
    assert critiques_in(engine) == set()
    assert {sample.critiques for sample in generation.samples()} == {()}


def test_an_external_critic_runs_in_parallel_with_the_engine(pool):
    engine, critic = DecodingEngine(), RemoteCritic()
    config = with_(critic={"mode": "endpoint", "judge_once": False})
    generation = generate(pool, config, engine, critic)
    assert critiques_in(engine) == set() and len(critiques_in(critic)) == 24
    assert generation.samples() == generate(pool, with_(critic={"judge_once": False})).samples()


def test_only_one_rank_of_an_engine_calls_the_external_critic(pool):
    engine, critic = DecodingEngine(), RemoteCritic()
    generation = generate(pool, with_(critic={"mode": "endpoint"}), engine, critic, judges=False)
    assert critiques_in(critic) == set() and generation.samples() == []
    inside = DecodingEngine()
    assert generate(pool, CONFIG, inside, judges=False).samples() == []
    assert len(critiques_in(inside)) > 0, "the ranks of an engine must step it together"


def test_a_failed_critique_is_counted_and_has_no_vote(pool):
    def write(request):
        completion = answer(request)
        return replace(completion, error="spent") if request.id.endswith("-1") else completion

    samples = generate(pool, engine=DecodingEngine(write)).samples()
    assert all([c.failed for c in s.critiques] == [False, True] and s.critiques[1].abstained for s in samples)
    assert any(sum(sample.step_wrong) for sample in samples)


def test_overlap_counts_the_tokens_decoded_during_rollouts(pool):
    engine = DecodingEngine()
    generation = generate(pool, with_(critic={"judge_once": False}), engine)
    last = max(step for name, step in engine.ended.items() if name.startswith("rollout"))
    lengths = {name: engine.ended[name] - engine.entered[name] for name in critiques_in(engine)}
    overlapped = sum(min(max(last - engine.entered[name], 0), length) for name, length in lengths.items())
    traffic = generation.traffic
    assert traffic.critique_tokens == sum(lengths.values())
    assert traffic.overlapped_tokens == overlapped > 0
    waiting = generate(pool, with_(critic={"stream": False}))
    assert waiting.traffic.overlapped_tokens == 0 < waiting.traffic.critique_tokens
    assert traffic.idle_seconds > 0 < traffic.both_seconds < traffic.busy_seconds
    assert waiting.traffic.both_seconds == 0


def test_traffic_adds_up():
    assert Traffic(1, 2, 3, 4, 5, 6, 7, 0.5, 0.25) + Traffic(1, 1, 1, 1, 1, 1, 1, 1.0, 1.0) == Traffic(
        2, 3, 4, 5, 6, 7, 8, 1.5, 1.25
    )
