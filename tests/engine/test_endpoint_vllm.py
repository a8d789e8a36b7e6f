"""A critic at vLLM's own server, started as a run starts it (`critic.mode: server`). The critic is a random Llama whose
size and tokenizer differ from the embedded policy's. A server starts slowly, so all tests share one."""

from __future__ import annotations

import gzip
import json
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
from scripted_server import critic_at, query, request
from scripted_world import scripted_config, scripted_engine, small_arguments
from small_tokenizers import CHAT
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import capo_fast.loaders as loaders
from capo_fast.config import load_config
from capo_fast.config.critic import ServerConfig
from capo_fast.credit.critic import load_template, render_critique_prompt
from capo_fast.engine.critic_server import CriticServer
from capo_fast.engine.server_process import running_server
from capo_fast.evaluation.labelled import load_solutions
from capo_fast.train import run

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[2] / "examples/endpoint_critic"


def make_judge(folder: Path) -> str:
    """Save a random Llama with one token per ASCII character."""
    letters = ["\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], unk_token="?"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", chat_template=CHAT)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(fast), "eos_token_id": fast.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    # Large weights, so that no two tokens have nearly equal probabilities.
    LlamaForCausalLM(
        LlamaConfig(**shape, **tokens, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3)
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server of that model."""
    folder = tmp_path_factory.mktemp("judge")
    config = ServerConfig(dtype="float32", max_model_len=256, kv_cache_gb=0.25, enforce_eager=True)
    with running_server(make_judge(folder / "model"), config, 1, folder / "log", 0) as server:
        yield server


KEY = "CRITIC_KEY"


@pytest.fixture
def url(server, monkeypatch):
    monkeypatch.setenv(KEY, server.key)
    return f"http://127.0.0.1:{server.port}/v1"


@torch.no_grad()
def greedy_critique(path, message):
    """By transformers: number of tokens, text, and True if the critique ends with the end token."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return len(ids), tokenizer.decode(ids, skip_special_tokens=True), int(ids[-1]) == tokenizer.eos_token_id


def test_critiques_from_vllms_server(url, server):
    """Greedy critiques match transformers, seeds repeat, a regex is obeyed, and a long prompt is truncated."""
    template = load_template("tiny")
    solutions = load_solutions(["tiny"], None, 8, 0)["tiny"]
    messages = [render_critique_prompt(template, each.problem, each.steps) for each in solutions]
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
    greedy = [request(f"g{i}", each, **sampling | {"temperature": 0.0}) for i, each in enumerate(messages)]
    seeded = [request(f"s{i}", messages[i % 8], seed=i // 16 * 8 + i % 8, **sampling) for i in range(32)]
    special = [
        request("regex", messages[0], regex="Judgment: (Yes|No)", **sampling),
        request("long", messages[0] * 20, **sampling),
    ]
    with critic_at(url, concurrency=16, api_key_env=KEY) as critic:
        assert critic.model == "critic"
        answers = query(critic, *greedy, *seeded, *special)
        spent = critic.spent_tokens
    for name, message in zip((each.id for each in greedy), messages, strict=True):
        found = answers[name]
        assert (found.answer_tokens, found.text, found.finished) == greedy_critique(server.model, message)
    assert [answers[f"s{i}"].text for i in range(8)] == [answers[f"s{i + 8}"].text for i in range(8)]
    assert [answers[f"s{i}"].text for i in range(8)] != [answers[f"s{i + 16}"].text for i in range(8)]
    assert answers["regex"].text in ("Judgment: Yes", "Judgment: No") and answers["regex"].finished
    assert (answers["long"].finished, answers["long"].text, answers["long"].error) == (False, "", None)
    assert spent == sum(each.prompt_tokens + each.answer_tokens for each in answers.values())


@pytest.mark.parametrize("route", ["/v1/models", "/health", "/server_info", "/no/such"])
def test_no_route_answers_without_the_key(server, route):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", route)
    assert connection.getresponse().status == 401
    connection.close()


def test_the_example_of_a_critic_at_a_server(url, tmp_path, monkeypatch):
    """The example's settings with the embedded default. No critique of this random critic parses."""
    monkeypatch.chdir(EXAMPLE)
    settings = ["--config", "pkg://capo_fast.configs/tiny.yaml", "settings.yaml", *small_arguments()]
    own = ["--endpoint.url", url, "--endpoint.api_key_env", KEY, "--critic.max_tokens", "16", "--eval.path", "none"]
    run(load_config([*settings, *own, "--train.steps", "1", "--run.dir", str(tmp_path)]), scripted_engine())
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (metrics["critic/critiques"], metrics["critic/failed"]) == (4 * 4, 0)
    assert metrics["critic/tokens"] > 0


def test_a_policy_is_trained_by_a_critic_of_another_size_and_tokenizer(url, server, tmp_path, monkeypatch):
    """All votes come from the server, after the last rollout; token counts are the server's."""
    served = CriticServer(server, 60.0, False, ExitStack())
    monkeypatch.setattr(loaders, "start_critic_server", lambda *arguments: served)
    config = scripted_config(
        *("--run.dir", str(tmp_path), "--train.steps", "1", "--eval.path", "none", "--critic.mode", "server"),
        *("--critic.path", server.model, "--critic.server.max_model_len", "256", "--critic.votes", "2"),
        *("--critic.max_tokens", "16"),
    )
    run(config, scripted_engine())
    [metrics] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with gzip.open(tmp_path / "rollouts/000001.jsonl.gz", "rt") as file:
        rollouts = [json.loads(line) for line in file]
    texts = [critique["text"] for rollout in rollouts for critique in rollout["critiques"]]
    assert len(texts) == metrics["critic/critiques"] == 4 * 4 * 2
    assert len(set(texts)) > 1
    assert (metrics["critic/failed"], metrics["critic/overlap"]) == (0, 0.0)
    critiques = 2 * (16 - metrics["critic/shared"])
    assert critiques < metrics["critic/tokens"] <= critiques * 16
    assert metrics["critic/prompt_tokens"] > critiques * len("<step_0>")
