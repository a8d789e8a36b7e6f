"""The critic's weights replace the policy's in the engine only for critique requests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from decoding_engine import DecodingEngine
from sampling_rounds import PROMPTS, TEMPLATE
from scripted_world import answer, scripted_config, tokenizer

from capo_fast.records import Completion
from capo_fast.rollout.generator import RolloutGenerator
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.rewards import Rewards
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream
from capo_fast.runtime.ranks import EngineGroup, ranks
from capo_fast.runtime.stages import Stages
from capo_fast.tiny.task import right_steps
from capo_fast.verify import VerifierPool


@pytest.fixture(scope="module")
def pool():
    with ranks(), VerifierPool(1, 5.0, "reward_functions:tiny_answer") as pool:
        yield Rewards((pool,))


class Recording:
    """Weights that record which model is loaded."""

    def __init__(self):
        self.loaded = []

    def hold(self, what, version):
        self.loaded.append(what)


CONFIG = scripted_config("--critic.mode", "self", "--critic.gate.groups", "any-wrong")


def write(request):
    """Like `answer`, but all rollouts of group 6 are right."""
    if not request.id.startswith("rollout-7-6"):
        return answer(request)
    ids = tokenizer().encode("\n\n".join(right_steps(PROMPTS[6].problem)), add_special_tokens=False)
    return Completion(request.id, tuple(ids), (-0.5,) * len(ids), tokenizer().decode(ids), True)


@pytest.mark.parametrize(("groups", "loaded"), [((6,), []), ((5, 6), ["critic"])])
def test_the_critic_s_weights_are_not_loaded_without_requests(pool, groups, loaded):
    engine, weights, alone = DecodingEngine(write), Recording(), EngineGroup(0, 1, True)
    builder = RequestBuilder(tokenizer(), TEMPLATE, CONFIG)
    stages = Stages(None, SimpleNamespace(start=lambda stage: None, stop=lambda: None))
    generator = RolloutGenerator(CONFIG, engine, engine, pool, builder, None, weights, alone, stages, None)
    members = [(group, sample) for group in groups for sample in range(4)]
    generation = SamplingRound(Stream(engine, engine), pool, builder, PROMPTS, members, 7, 6)
    generation.finish_rollouts()
    generator._criticise(generation, 6, 0)
    assert weights.loaded == loaded
    assert {each.rollout.group for each in generation.samples() if each.critiques} == set(groups) - {6}
