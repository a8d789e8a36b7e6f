"""Sampling rounds of the tiny world on an engine that decodes step by step."""

from __future__ import annotations

from dataclasses import replace

from decoding_engine import DecodingEngine
from scripted_world import scripted_config, tokenizer

from capo_fast.credit.critic import load_template
from capo_fast.records import Prompt
from capo_fast.rollout.requests import RequestBuilder
from capo_fast.rollout.sampling import SamplingRound
from capo_fast.rollout.stream import Stream

TEMPLATE = load_template("tiny")
CONFIG = scripted_config("--critic.mode", "self", "--critic.votes", "2")


def prompt(question):
    ids = tokenizer().encode(question + "\n", add_special_tokens=False)
    return Prompt(f"id of {question}", question, str(result_mod_10(question)), None, tuple(ids))


def result_mod_10(question):
    total = int(question[0])
    for operation, digit in zip(question[1::2], question[2::2], strict=True):
        total = {"+": total + int(digit), "-": total - int(digit), "*": total * int(digit)}[operation] % 10
    return total


PROMPTS = {3: prompt("3+4*2"), 5: prompt("9*2-9-1+2+2"), 6: prompt("1+1+1")}


def with_(config=CONFIG, **sections):
    return replace(config, **{name: replace(getattr(config, name), **keys) for name, keys in sections.items()})


def generate(pool, config=CONFIG, engine=None, critic=None, prompts=PROMPTS, judges=True, spent=0):
    engine = engine or DecodingEngine()
    members = [(group, sample) for group in prompts for sample in range(config.rollout.n)]
    sampler = RequestBuilder(tokenizer(), TEMPLATE, config)
    stream = Stream(engine, critic or engine)
    generation = SamplingRound(stream, pool, sampler, prompts, members, 7, 6, judges)
    generation.finish_rollouts()
    generation.choose()
    generation.finish_critiques(spent)
    return generation


def critiques_in(engine):
    return {name for name in engine.entered if name.startswith("critique")}


def rollout_of(critique):
    group, sample = critique.split("-")[2:4]
    return f"rollout-7-{group}-{sample}"


def judged_members(engine):
    return {tuple(map(int, rollout_of(name).split("-")[2:])) for name in critiques_in(engine)}
