"""The shipped files: equal to the command's output, loadable everywhere, and of the intended accuracy."""

import gzip
import json
from random import Random

import pytest
import torch

from capo_fast.credit.critic import load_template, parse_critique, render_critique_prompt
from capo_fast.credit.verdicts import VERDICTS
from capo_fast.tiny import CRITIC, HELDOUT, MODEL, TRAIN
from capo_fast.tiny.critique import critique_prompt, critique_text
from capo_fast.tiny.measure import (
    CRITIQUE_TOKENS,
    SOLUTION_TOKENS,
    critic_figures,
    cut,
    load,
    policy_figures,
    sample,
)
from capo_fast.tiny.pretrain import encode, make, write_problems
from capo_fast.tiny.task import BLANK, World, answer, right_steps, true_wrong_steps
from capo_fast.tiny.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def train():
    return [json.loads(line) for line in gzip.open(TRAIN, "rt")]


@pytest.fixture(scope="module")
def heldout():
    return [json.loads(line) for line in HELDOUT.open()]


@pytest.fixture(scope="module")
def checkpoint():
    return load(MODEL)


def parse(text, steps):
    """The wrong steps that the trainer reads from a critique; None if it abstains."""
    critique = parse_critique(text or "", len(steps), finished=text is not None)
    return None if critique.abstained else critique.wrong_steps


def test_problems_are_disjoint_and_their_solutions_right(train, heldout):
    assert (len(train), len(heldout)) == (4096, 400)
    rows = train + heldout
    assert len({row["problem"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["answer"] == answer(row["problem"])
        assert row["solution"].split(BLANK) == right_steps(row["problem"])


def test_the_command_makes_the_shipped_problems(tmp_path):
    write_problems(tmp_path, seed=0)
    assert (tmp_path / "train.jsonl.gz").read_bytes()[:10] == TRAIN.read_bytes()[:10]
    assert gzip.decompress((tmp_path / "train.jsonl.gz").read_bytes()) == gzip.decompress(TRAIN.read_bytes())
    assert (tmp_path / "heldout.jsonl").read_bytes() == HELDOUT.read_bytes()


def test_shipped_files_are_small():
    files = [TRAIN, HELDOUT, *MODEL.iterdir(), *CRITIC.iterdir()]
    assert sum(file.stat().st_size for file in files) < 1_700_000


def test_shipped_shape(checkpoint):
    model, _ = checkpoint
    assert sum(p.numel() for p in model.parameters()) == 302_208
    assert model.config.head_dim == 32, "vLLM on a CPU rejects 16"
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "bfloat16"


def test_shipped_policy_and_critic(checkpoint, heldout):
    model, tokenizer = checkpoint
    questions = [row["problem"] for row in heldout]
    solutions = sample(model, tokenizer, questions, SOLUTION_TOKENS, seed=0)
    policy = policy_figures(questions, solutions)
    assert 0.27 < policy.pass_at_1 < 0.42  # 0.345 +- three standard errors
    assert 0.19 < policy.wrong_steps < 0.25
    assert policy.cut_short < 0.01

    steps = [cut(text) for text in solutions]
    prompts = [critique_prompt(q, s) for q, s in zip(questions, steps, strict=True)]
    critiques = sample(model, tokenizer, prompts, CRITIQUE_TOKENS, seed=1)
    truth = [true_wrong_steps(q, s) for q, s in zip(questions, steps, strict=True)]
    critic = critic_figures(truth, [parse(text, s) for text, s in zip(critiques, steps, strict=True)])
    assert critic.precision > 0.88
    assert critic.recall > 0.9
    assert critic.abstained < 0.015


@torch.inference_mode()
def test_the_shipped_critic_of_steps_is_precise_with_two_tokens_per_step(heldout):
    critic, tokenizer = load(CRITIC)
    rng, world = Random("critic of steps"), World.from_seed(0)
    solutions = [(row["problem"], world.solution(rng, row["problem"])) for row in heldout[:80]]
    shown = [(question, steps[: k + 1]) for question, steps in solutions for k in range(len(steps))]
    chats = [[{"role": "user", "content": critique_prompt(*each)}] for each in shown]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    verdicts = tokenizer.batch_decode(critic.generate(**batch, max_new_tokens=2, do_sample=False)[:, -2:])
    truth = [frozenset({0} if len(steps) - 1 in true_wrong_steps(q, steps) else ()) for q, steps in shown]
    figures = critic_figures(truth, [VERDICTS["yes-no"].whole(text, 1, False).wrong_steps for text in verdicts])
    assert figures.precision > 0.98 and figures.recall > 0.95


@pytest.mark.parametrize("steps", [["9*2=7", "7-9=8", "A:3"], ["9*2=8", "8-9=9", "A:9"], ["9*2=8", "A:8"]])
def test_a_true_critique_parses_to_the_oracle(steps):
    assert parse(critique_text("9*2-9", steps), steps) == true_wrong_steps("9*2-9", steps)


def test_the_critic_was_trained_on_the_trainer_s_prompt():
    steps = ["9*2=7", "7-9=8", "A:8"]
    assert render_critique_prompt(load_template("tiny"), "9*2-9", steps) == critique_prompt("9*2-9", steps)


def test_the_loss_covers_completions_only():
    tokenizer = build_tokenizer()
    ids, targets = encode(tokenizer, [("9*2", "A:8"), ("9*2-9", "9*2=8")])
    assert [tokenizer.decode(row[row >= 0]) for row in targets] == ["A:8<eos>", "9*2=8<eos>"]
    assert tokenizer.decode(ids[1]) == "9*2-9\n9*2=8<eos>"


def test_making_the_files_is_repeatable_and_the_models_learn(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses = [make(tmp_path / name, steps=12, seed=7) for name in "ab"]
    finally:
        torch.set_num_threads(threads)
    assert losses[0] == losses[1]
    assert all(each[-1] < 0.6 * each[0] for each in losses[0].values())
    made = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file()]
    assert len(made) == 12
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in made)
