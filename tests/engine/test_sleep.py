"""The order in which a sleeping engine wakes, with a stub of vLLM. Sleep on a GPU is untested."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import capo_fast.engine.vllm as vllm_engine
from capo_fast.config.schema import EngineConfig, LoraConfig

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}


class RecordingLLM:
    """Records the calls of vLLM's LLM."""

    def __init__(self):
        self.calls = []
        self.llm_engine = SimpleNamespace(
            add_lora=lambda request: self.calls.append(f"add {request.lora_name}"),
            remove_lora=lambda number: self.calls.append(f"remove {number}"),
            model_config=SimpleNamespace(architecture="LlamaForCausalLM", using_transformers_backend=lambda: False),
        )

    def get_tokenizer(self):
        return None

    def apply_model(self, function):
        self.calls.append(function.func.__name__)

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {' '.join(tags)}")

    def reset_prefix_cache(self):
        self.calls.append("reset")
        return True


@pytest.fixture
def start(monkeypatch):
    llm = RecordingLLM()
    monkeypatch.setattr(vllm_engine, "start_llm", lambda *arguments: llm)

    def start(lora_rank, on_gpu=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
        return vllm_engine.VllmEngine("model", EngineConfig(), LoraConfig(rank=lora_rank)), llm.calls

    return start


def test_weights_wake_before_the_load_and_the_cache_after(start):
    engine, calls = start(0)
    engine.load(iter(()))
    assert calls == ["load_weights", "reset"]
    calls.clear()
    engine.sleep()
    engine.sleep()
    engine.load(iter(()))
    assert calls == ["sleep 2", "wake weights", "load_weights", "wake kv_cache", "reset"]


def test_the_base_of_an_adapter_is_kept_in_sleep(start):
    engine, calls = start(8)
    engine.load_adapter(FILES)
    engine.load_adapter(FILES)
    assert calls == ["add policy-1", "reset", "remove 1", "add policy-2", "reset"]
    calls.clear()
    engine.sleep()
    engine.load_adapter(FILES)
    assert calls == ["sleep 1", "wake weights", "remove 2", "add policy-3", "wake kv_cache", "reset"]


def test_an_engine_on_a_cpu_never_sleeps(start):
    engine, calls = start(0, on_gpu=False)
    engine.sleep()
    assert calls == []
