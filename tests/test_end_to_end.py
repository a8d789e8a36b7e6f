"""The command as users call it, with the real engine: killed and resumed, and on other models, data and ranks."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import ENGINE, run_ranks, start_server, train
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from capo_fast.config.paths import resolve_path

pytestmark = pytest.mark.slow
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl.gz"
TINY = ["--train.steps", "3", "--rollout.prompts", "4", "--eval.limit", "16", "--checkpoint.every", "1"]


def forked_run(folder, *arguments, ranks=1):
    """The command, forked from a process that has imported vLLM."""
    statuses, output = run_ranks(train, folder.with_suffix(".log"), ["--run.dir", str(folder), *arguments], world=ranks)
    assert statuses == [0] * ranks, output


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def whole_run(folder):
    forked_run(folder, *TINY)


def killed_run(folder):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    process = subprocess.Popen([*torchrun, "-m", "capo_fast.train", "--run.dir", str(folder), *TINY])
    while len(lines(folder)) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.kill()  # torchrun's rank must exit too, or it would write into the resumed run
    process.wait()
    assert not (folder / "summary.json").exists(), "killed after its end: this tests nothing"
    forked_run(folder, *TINY)


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def problems():
    """Word problems: GSM8K's if the shared data is present, else a few made here."""
    if GSM8K.exists():
        with gzip.open(GSM8K, "rt") as file:
            return [json.loads(line) for _, line in zip(range(64), file, strict=False)]
    made = [
        (f"Ann has {a} apples and buys {b} more. How many are there?", str(a + b)) for a in range(8) for b in (3, 5)
    ]
    return [{"id": f"made-{i}", "problem": question, "answer": answer} for i, (question, answer) in enumerate(made)]


def make_model(family, folder, texts):
    """Save a random model, with a byte-level tokenizer trained on the problems, for transformers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    configuration, model = FAMILIES[family]
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": len(fast), "eos_token_id": 0, "bos_token_id": None}
    model(configuration(**shape, **sizes, max_position_embeddings=2048)).save_pretrained(folder)


def random_model_run(folder, family, dtype, ranks=1, **more):
    rows = problems()
    data, model = folder.with_name("problems.jsonl"), folder.with_name("model")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model(family, model, [row["problem"] for row in rows])
    settings = {
        "config": Path(__file__).parent / "random_model.yaml",
        "model.path": model,
        "data.path": data,
        "policy.dtype": dtype,
        "engine.dtype": dtype,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    arguments = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    forked_run(folder, *arguments, ranks=ranks)


RUNS = {
    "killed": killed_run,
    "whole": whole_run,
    "qwen2": partial(random_model_run, family="qwen2", ranks=2, dtype="float32"),
    "sliced": partial(random_model_run, family="qwen2", ranks=2, dtype="float32", engine__tensor_parallel=2),
    "llama": partial(random_model_run, family="llama", dtype="bfloat16", lora__rank=4),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The folder of a finished run of RUNS. Two run at once, because a starting run leaves most cores idle."""
    start_server(*ENGINE)
    with ThreadPoolExecutor(2) as pool:
        folders = {name: tmp_path_factory.mktemp(name) / "run" for name in RUNS}
        done = {name: pool.submit(run, folders[name]) for name, run in RUNS.items()}

        def wait(name):
            done[name].result()
            return folders[name]

        yield wait


def test_a_run_killed_with_the_real_engine_ends_with_the_same_bits(run_of):
    whole, killed = run_of("whole"), run_of("killed")
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert len(lines(killed)) == 3
    printed = killed.with_suffix(".log").read_text()
    assert "resumes from checkpoints/step_0" in printed and "starting the engine: pkg://capo_fast.tiny/model" in printed
    for step in (1, 2, 3):
        name = f"rollouts/{step:06d}.jsonl.gz"
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


@pytest.mark.parametrize(("family", "gap"), [("qwen2", 1e-4), ("llama", 0.1)])
def test_other_models_and_data(family, gap, run_of):
    folder = run_of(family)
    steps = [json.loads(line) for line in lines(folder)]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["rollouts"] == 8 and step["updates"] == 2 for step in steps)
    assert steps[0]["gap/mean"] < gap
    assert 0 <= steps[0]["loss/ref_kl"] < 0.01
    assert AutoModelForCausalLM.from_pretrained(folder / "model").dtype == torch.bfloat16


def test_a_lora_run_uses_its_base_as_critic_and_saves_an_adapter(run_of):
    folder = run_of("llama")
    steps = [json.loads(line) for line in lines(folder)]
    assert all(step["critic/critiques"] == 16 and step["critic/tokens"] > 0 for step in steps)
    assert 0 <= steps[0]["critic/overlap"] <= 1
    base = AutoModelForCausalLM.from_pretrained(folder.with_name("model"), dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], load_file(folder.with_name("model") / "model.safetensors")[name])
    torch.testing.assert_close(adapted[name], merged[name], atol=0.01, rtol=0.01)


def test_one_engine_in_two_slices_trains_like_two_engines(run_of):
    """The random model has one key/value head: each of the two ranks has a copy of it."""
    whole, sliced = run_of("qwen2"), run_of("sliced")
    for step in (1, 2):
        rows = [rollouts(folder, step) for folder in (whole, sliced)]
        for key in ("group", "sample", "token_ids", "votes"):
            assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]]
    for one, two in zip(*([json.loads(line) for line in lines(folder)] for folder in (whole, sliced)), strict=True):
        assert two["gap/mean"] < 1e-5
        for key in ("rollouts", "critic/critiques", "updates", "loss/loss", "grad_norm"):
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-6)


def rollouts(folder, step):
    with gzip.open(folder / "rollouts" / f"{step:06d}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_the_default_configuration_names_files_that_exist():
    for name in ("model", "train.jsonl.gz", "heldout.jsonl"):
        assert resolve_path(f"pkg://capo_fast.tiny/{name}").exists()
