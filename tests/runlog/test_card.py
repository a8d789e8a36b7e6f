"""The cards of an export: front matter for the hub, the run's curve and digests, no path of the machine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from scripted_world import scripted_config

from capo_fast.config.load import build_config
from capo_fast.config.sft import SftConfig
from capo_fast.rollout.pass_rate import PassRate
from capo_fast.runlog.card import base_of, model_cards, origin_of
from capo_fast.runlog.progress import Progress
from capo_fast.sft.learner import HeldOut

DIGESTS = {"data.path": {"": "5f0c"}, "model.path": {"config.json": "77ab", "model.safetensors": "01c4"}}


def run_of(rate, *others):
    progress = Progress(step=8)
    for step, each in zip((0, 4, 8), (rate, *others), strict=False):
        progress.note(step, each)
    return progress


RATES = [PassRate(0.25, 0.02, 400, 0), PassRate(0.5, float("nan"), 400, 3), PassRate(0.75, 0.02, 400, 0)]


def cards(config, progress, repeated=0):
    return {
        name: ModelCard(text)
        for name, text in model_cards(config, progress, origin_of(config, DIGESTS), repeated).items()
    }


def test_a_card_has_the_curve_the_digests_and_the_settings():
    config = scripted_config("--algorithm", "grpo", "--train.lr", "1e-3", "--run.dir", "secret/place")
    card = cards(config, run_of(*RATES), repeated=7)["model"]
    assert "| 4 | 0.5000 | - | 400 | 3 |\n" in card.text and "| 8 | 0.7500 | 0.0200 | 400 | 0 |" in card.text
    assert "| `data.path` | pkg://capo_fast.tiny/train.jsonl.gz | `5f0c` |" in card.text
    assert "`pkg://capo_fast.tiny/model`" not in card.text.partition("## Settings")[2]
    assert "- 7 of the held-out problems are training problems as well." in card.text
    [settings] = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert build_config(yaml.safe_load(settings)).train.lr == 1e-3
    assert "secret" not in card.content and "Trained by reinforcement learning (`grpo`) for 8 steps" in card.text


def test_a_card_has_only_the_names_of_files_and_folders(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    config = scripted_config("--data.path", str(tmp_path / "rows.jsonl"))
    card = cards(config, run_of(*RATES))["model"]
    assert "| `data.path` | rows.jsonl | `5f0c` |" in card.text
    assert str(tmp_path) not in card.content


def test_both_cards_of_a_lora_run_name_their_library_and_their_code_compiles():
    found = cards(scripted_config("--lora.rank", "4"), run_of(*RATES))
    assert {name: card.data.library_name for name, card in found.items()} == {
        "model": "transformers",
        "adapter": "peft",
    }
    assert found["adapter"].data.tags == ["capo_fast", "capo", "reinforcement-learning", "lora"]
    assert found["model"].data.license == "apache-2.0", "from the embedded model's card"
    assert found["adapter"].text.lstrip().startswith("# A LoRA adapter of pkg://capo_fast.tiny/model\n")
    assert "vllm serve FOLDER --dtype float32`" in found["model"].text, "vLLM would round the weights"
    for card in found.values():
        [code] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        compile(code, "card", "exec")
        assert "\n\n\n" not in card.text and "{%" not in card.text


def test_a_fine_tuned_model_has_its_loss():
    config = SftConfig(model=scripted_config().model, data=replace(SftConfig().data, path="rows.jsonl"))
    text = cards(config, run_of(HeldOut(1.5, 0.2, 1234), HeldOut(0.5, 0.6, 1234)))["model"].text
    assert "| 4 | 0.5000 | 1,234 |" in text and "Loss on held-out answers, in nats per token." in text
    assert "Nothing was evaluated in this run." in cards(config, Progress(step=3))["model"].text


@pytest.mark.parametrize(
    ("head", "license_", "hub_id"),
    [
        (ModelCardData(license="mit", base_model="org/name").to_yaml(), "mit", "org/name"),
        ("license: [", "unknown", None),
        (None, "unknown", None),
    ],
    ids=["card", "malformed", "none"],
)
def test_licence_and_hub_id_come_from_the_base_folders_card(head, license_, hub_id, tmp_path):
    (folder := tmp_path / "base").mkdir()
    if head is not None:
        (folder / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    base = base_of(str(folder))
    assert (base.name, base.license, base.hub_id) == ("base", license_, hub_id)
