"""Requests to the engine and the results read from its answers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from scripted_engine import ScriptedEngine
from scripted_world import answer, scripted_config, tokenizer

from capo_fast.credit.critic import load_template
from capo_fast.data import ChatTemplate, Problem, render_prompts
from capo_fast.engine.base import run_requests
from capo_fast.errors import ConfigError
from capo_fast.records import Completion, Critique, Prompt
from capo_fast.rollout.critiquing import Critiquing, check_room
from capo_fast.rollout.requests import RequestBuilder, critique_prompt_ids, rollout_id
from capo_fast.rollout.stream import Stream
from capo_fast.runtime.digest import seed_of

TEMPLATE = load_template("tiny")
CONFIG = scripted_config()


def prompt(question):
    return Prompt(f"id of {question}", question, "0", None, encoded(question + "\n"))


def encoded(text):
    return tuple(tokenizer().encode(text, add_special_tokens=False))


PROMPTS = {3: prompt("3+4*2"), 5: prompt("9*2-9")}


class RecordingEngine(ScriptedEngine):
    """Records its requests and answers the last one first, with `answer`."""

    def __init__(self, answer=answer):
        super().__init__(answer)
        self.requests = []

    def add(self, request):
        self.requests.append(request)
        self._waiting.appendleft(request)


def rollouts(engine=None, step=7, config=CONFIG):
    sampler = RequestBuilder(tokenizer(), TEMPLATE, config)
    members = [(group, sample) for group in PROMPTS for sample in range(config.rollout.n)]
    requests = [sampler.rollout_request(PROMPTS[group], group, sample, step) for group, sample in members]
    answers = run_requests(engine or RecordingEngine(), requests)
    return [sampler.read_rollout(answers[rollout_id(step, g, i)], PROMPTS[g], g, i, step - 1) for g, i in members]


def critiques(engine, config, of):
    """Critiques of each rollout from separate requests, even if rollouts are equal."""
    return [critiques_of(engine, config, rollout) for rollout in of]


def critiques_of(engine, config, rollout):
    stream = Stream(engine, engine)
    critiquing = Critiquing(stream, RequestBuilder(tokenizer(), TEMPLATE, config))
    critiquing.ask(rollout)
    while stream.critiques:
        for completion in stream.advance():
            critiquing.note(completion)
    return list(critiquing.result(rollout)[0])


def with_critic(**changes):
    return replace(CONFIG, critic=replace(CONFIG.critic, **changes))


def test_a_seed_is_the_same_on_every_machine():
    assert seed_of(0, "rollout-3-0-1", "gsm8k-7") == 557867343642162442


def test_a_seed_differs_by_any_part_of_its_key():
    keys = [(0, "a", "b"), (1, "a", "b"), (0, "a2", "b"), (0, "a", "b2"), (0, "ab", ""), ("0", "a", "b"), (0, "b", "a")]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_rollouts_have_their_place_version_and_exact_completion():
    engine = RecordingEngine()
    found = rollouts(engine)
    assert [(r.group, r.sample) for r in found] == [(g, i) for g in (3, 5) for i in range(CONFIG.rollout.n)]
    assert {r.version for r in found} == {6}
    for rollout, request in zip(found, engine.requests, strict=True):
        written = answer(request)
        assert rollout.prompt is PROMPTS[rollout.group]
        assert request.prompt_ids == rollout.prompt.token_ids
        fields = ("token_ids", "logprobs", "text", "finished")
        assert [getattr(rollout, f) for f in fields] == [getattr(written, f) for f in fields]
        assert len(rollout.steps.starts) == len(rollout.token_ids)
        assert list(rollout.steps.texts) == rollout.text.split("\n\n")


def test_a_rollout_request_has_the_parameters_of_the_settings():
    settings = replace(CONFIG.rollout, temperature=0.7, top_p=0.9, top_k=20, max_tokens=11)
    engine = RecordingEngine()
    rollouts(engine, config=replace(CONFIG, rollout=settings))
    found = {(r.temperature, r.top_p, r.top_k, r.max_tokens) for r in engine.requests}
    assert found == {(0.7, 0.9, 20, 11)}


def test_no_two_requests_of_a_run_share_a_seed():
    engine = RecordingEngine()
    for step in (1, 2):
        found = rollouts(engine, step)
        critiques(engine, with_critic(votes=3, judge_once=False), found)
    rollouts(engine, 1, replace(CONFIG, seed=1))
    assert len({request.seed for request in engine.requests}) == len(engine.requests) == 2 * (8 + 24) + 8
    again = RecordingEngine()
    rollouts(again, 1)
    assert again.requests == engine.requests[:8]


def test_the_critic_is_shown_exactly_the_rollouts_own_steps():
    engine = RecordingEngine()
    found = rollouts()
    critiques(engine, CONFIG, found)
    for rollout, request in zip(found, engine.requests, strict=True):
        steps = "".join(f"<step_{k}>{step}</step_{k}>" for k, step in enumerate(rollout.steps.texts))
        assert tokenizer().decode(request.prompt_ids) == f"{rollout.prompt.problem}\n{steps}\n"


def test_a_solution_s_own_box_is_shown_unless_boxes_are_verdicts():
    [first, *_] = rollouts()
    boxed = replace(first, steps=replace(first.steps, texts=(r"so \boxed{-1}",)))
    for verdict, shown in (("capo", True), ("fapo", False)):
        [request] = RequestBuilder(tokenizer(), TEMPLATE, with_critic(verdict=verdict)).critique_requests(boxed)
        assert (r"\boxed" in request.message) == shown and "boxed{-1}" in request.message


def test_votes_are_returned_in_the_order_of_rollouts_and_votes():
    def name_the_vote(request):
        text = f"Judgment: No\n<incorrect_steps>{request.id.split('-')[-1]}</incorrect_steps>"
        return Completion(request.id, (1,), (0.0,), text, True)

    long = [rollout for rollout in rollouts() if len(rollout.steps.texts) >= 3]
    found = critiques(RecordingEngine(name_the_vote), with_critic(votes=3), long[::-1])
    assert len(found) == len(long) > 1
    assert [[c.wrong_steps for c in votes] for votes in found] == [[{0}, {1}, {2}]] * len(long)


def test_each_rollout_gets_its_own_critiques():
    found = rollouts()
    alone = [critiques(RecordingEngine(), CONFIG, [rollout])[0] for rollout in found]
    assert critiques(RecordingEngine(), CONFIG, found) == alone
    assert len({votes[0].wrong_steps for votes in alone}) > 1


def test_a_prompt_that_is_too_long_abstains_without_a_request():
    found, chat = rollouts(), ChatTemplate(tokenizer())
    lengths = [
        len(critique_prompt_ids(chat, TEMPLATE, r.prompt.problem, r.steps.texts, r.prompt.solution)) for r in found
    ]
    longest = sorted(set(lengths))[-1]
    fits = with_critic(votes=2, max_tokens=100)
    engine = RecordingEngine()
    critiques(engine, replace(fits, engine=replace(fits.engine, max_model_len=100 + longest)), found)
    assert len(engine.requests) == 2 * len(found)
    engine = RecordingEngine()
    judged = critiques(engine, replace(fits, engine=replace(fits.engine, max_model_len=99 + longest)), found)
    assert max(len(request.prompt_ids) for request in engine.requests) < longest
    unread = Critique(abstained=True, wrong_steps=frozenset(), dropped=0, truncated=True)
    assert [votes == [unread] * 2 for votes in judged] == [length == longest for length in lengths]


@pytest.mark.parametrize(("voting", "expected"), [("greedy", (0.0, 1.0)), ("majority", (0.8, 0.9))])
def test_greedy_is_temperature_0(voting, expected):
    engine = RecordingEngine()
    critiques(engine, with_critic(voting=voting, temperature=0.8, top_p=0.9, max_tokens=77), rollouts())
    assert {(r.temperature, r.top_p, r.top_k, r.max_tokens) for r in engine.requests} == {(*expected, -1, 77)}


def test_templates_get_their_arguments():
    coder = copy.deepcopy(tokenizer())
    coder.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '' if enable_thinking else ' ok\\n' }}"
    problem = Problem("p", "1+1=", "2", None)
    for thinks, end in ((True, ""), (False, " ok\n")):
        arguments = {"enable_thinking": thinks}
        chat = ChatTemplate(coder, arguments=arguments)
        ids = critique_prompt_ids(chat, "{{ problem }}", "1+1=", [], None)
        [prompt] = render_prompts([problem], chat, 99)
        assert coder.decode(ids) == coder.decode(prompt.token_ids) == f"1+1={end}"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("--critic.reads", "step", "--critic.step.max_tokens"), "critic.step.max_tokens"),
        (("--critic.max_tokens",), "critic.max_tokens"),
    ],
)
def test_a_template_that_leaves_no_room_is_refused_at_the_start(settings, key):
    least = len(critique_prompt_ids(ChatTemplate(tokenizer()), TEMPLATE, "", [""], None))
    of = {tokens: scripted_config(*settings, str(256 - tokens)) for tokens in (least, least + 1)}
    check_room(RequestBuilder(tokenizer(), TEMPLATE, of[least + 1]))
    with pytest.raises(ConfigError, match=f"^{key}: found {256 - least}, which leaves {least} of engine.max_model_len"):
        check_room(RequestBuilder(tokenizer(), TEMPLATE, of[least]))
    check_room(RequestBuilder(tokenizer(), TEMPLATE, replace(of[least], credit=replace(CONFIG.credit, process="none"))))
