"""Every load of an invalid model folder is refused with one line that names the fault."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub
from model_folders import INDEX, SINGLE, configured, copied, reweighted, sharded, with_tokens, without
from safetensors.torch import load_file, save_file

from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config, CriticConfig, EngineConfig, ModelConfig
from capo_fast.engine.checksum import checksum
from capo_fast.errors import ConfigError
from capo_fast.loaders import check_models, start_engine
from capo_fast.policy.model import load_model
from capo_fast.pretrained import (
    check_context,
    check_engine_values,
    check_engine_weights,
    check_model_folder,
    load_tokenizer,
    read_config,
)

MLP = tuple(f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate", "up"))
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
BUFFER = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
CODE = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}


class Crafted:
    """Runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def pickled(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Crafted(folder / "ran")))


def with_code(folder: Path, **entries) -> None:
    configured(folder, auto_map=CODE, **entries)
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\n")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def with_twice_the_embedding(folder: Path) -> None:
    """Put a second embedding into the second shard; transformers would use that one."""
    sharded(folder)
    first, last = (load_file(folder / SHARDS[i]) for i in (0, 1))
    save_file(last | {EMBEDDING: 2 * (first | last)[EMBEDDING]}, folder / SHARDS[1], {"format": "pt"})
    moved(folder, SHARDS[0])


def moved(folder: Path, shard: str | None) -> None:
    """List the embedding under this shard in the index; None: remove it from the index."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].pop(EMBEDDING)
    index["weight_map"] |= {EMBEDDING: shard} if shard else {}
    (folder / INDEX).write_text(json.dumps(index))


REFUSED = {
    "lacks projections": (lambda f: reweighted(f, without(*MLP)), f"3 missing: {', '.join(MLP)}"),
    "lacks a head": (lambda f: configured(f, tie_word_embeddings=False), f"1 missing: {HEAD}"),
    "a layer more": (lambda f: configured(f, num_hidden_layers=4, layer_types=None), r"12 missing: .* and 9 more"),
    "a layer fewer": (lambda f: configured(f, num_hidden_layers=2, layer_types=None), "12 unexpected: model.layers.2"),
    "another vocabulary": (lambda f: configured(f, vocab_size=80), rf"another shape: {EMBEDDING} \[64, 96\]"),
    "a head of its own": (lambda f: reweighted(f, lambda w: w | {HEAD: 2 * w[EMBEDDING]}), f"ties {HEAD} to"),
    "no prefix": (
        lambda f: reweighted(f, lambda w: {name.removeprefix("model."): each for name, each in w.items()}),
        "names lack the prefix 'model.'",
    ),
    "a shard lost": (without_a_shard, f"{INDEX} names model-00002-of-00002.safetensors, which is not there"),
    "a weight in two shards": (with_twice_the_embedding, f"found {EMBEDDING} in both {SHARDS[0]} and {SHARDS[1]}"),
    "a weight in another shard": (
        lambda f: (sharded(f), moved(f, SHARDS[1])),
        f"{SHARDS[0]} contains {EMBEDDING}, which {INDEX} has in {SHARDS[1]}",
    ),
    "a weight not in the index": (
        lambda f: (sharded(f), moved(f, None)),
        f"{SHARDS[0]} contains {EMBEDDING}, which {INDEX} lacks",
    ),
    "a stray shard": (
        lambda f: (sharded(f), (f / "model-00003-of-00003.safetensors").touch()),
        f"found model-00003-of-00003.safetensors, wanted only the files that {INDEX} names",
    ),
    "a second file": (lambda f: (f / "old.safetensors").touch(), f"found old.safetensors beside {SINGLE}"),
    "both forms": (lambda f: (f / INDEX).write_text("{}"), f"found both {SINGLE} and {INDEX}"),
    "cut": (lambda f: os.truncate(f / SINGLE, 1000), f"{SINGLE} can't be read, is it whole?"),
    "a pickle": (pickled, "no weights, .* pytorch_model.bin is a pickle"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json contains a JSON list"),
    "bad generation": (lambda f: (f / "generation_config.json").write_text("x"), "generation_config.json is not JSON"),
    "no type": (lambda f: configured(f, model_type=None), "config.json has no model_type"),
    "unknown type": (lambda f: configured(f, model_type="frob"), "model_type frob is unknown to transformers"),
    "code of its own": (lambda f: with_code(f, model_type="frob"), r"its own code \(mine.C\) is never run"),
    "unknown rope": (lambda f: configured(f, rope_parameters={"rope_type": "frob"}), "rope_type 'frob' is unknown"),
    "unknown dtype": (lambda f: configured(f, dtype="float7"), "dtype 'float7' is unknown"),
    "unknown activation": (lambda f: configured(f, hidden_act="frob"), "hidden_act 'frob' is unknown"),
    "a classifier": (
        lambda f: configured(f, architectures=["Qwen2ForSequenceClassification"]),
        "architectures Qwen2ForSequenceClassification, wanted Qwen2ForCausalLM",
    ),
    "an unknown architecture": (
        lambda f: configured(f, architectures=["FrobForCausalLM"]),
        "architectures FrobForCausalLM, wanted Qwen2ForCausalLM$",
    ),
    "an unnamed architecture": (lambda f: configured(f, architectures=[None]), r"architectures \[None\], wanted names"),
    "an activation that vLLM lacks": (lambda f: configured(f, hidden_act="gelu"), "hidden_act gelu, wanted silu"),
    "no heads": (lambda f: configured(f, num_attention_heads=0), "num_attention_heads 0, wanted a positive integer"),
    "padding beyond": (lambda f: configured(f, pad_token_id=64), "pad_token_id 64, wanted less than vocab_size, 64"),
    "integers": (
        lambda f: reweighted(f, lambda w: w | {MLP[0]: w[MLP[0]].to(torch.int8)}),
        f"{SINGLE} has {MLP[0]} as I8 and config.json no quantization_config, wanted one of F64, ",
    ),
    "8-bit floats": (
        lambda f: reweighted(f, lambda w: w | {MLP[0]: w[MLP[0]].to(torch.float8_e4m3fn)}),
        f"{SINGLE} has {MLP[0]} as F8_E4M3 and",
    ),
    "empty": (emptied, "no config.json, wanted a model's folder"),
    "an adapter": (lambda f: (emptied(f), adapter(f)), "found a LoRA adapter, wanted a whole model"),
    "an adapter beside": (adapter, "found adapter_config.json beside the model"),
    "a run": (
        lambda f: (emptied(f), (f / "config.yaml").touch(), (f / "model").mkdir()),
        "found a run's folder, wanted its model/",
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", ["train", "sample"])
@pytest.mark.parametrize("fault", REFUSED)
def test_an_invalid_folder_is_a_one_line_error(fault, use, tmp_path):
    damage, message = REFUSED[fault]
    damage(folder := copied(tmp_path / "model"))
    with pytest.raises(ConfigError, match=message) as caught:
        check_model_folder(str(folder), use=use)
    assert str(caught.value).startswith(f"model.path: {folder}") and "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


ACCEPTED = {
    "as shipped": lambda f: None,
    "sharded": sharded,
    "a tied head as well": lambda f: reweighted(f, lambda w: w | {HEAD: w[EMBEDDING].clone()}),
    "code beside a known type": with_code,
    "old buffers": lambda f: reweighted(f, lambda w: w | BUFFER),
    "a pickle as well": lambda f: (f / "pytorch_model.bin").touch(),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_valid_folder_is_accepted(kind, tmp_path, capfd):
    ACCEPTED[kind](folder := copied(tmp_path / "model"))
    assert check_model_folder(str(folder)).model_type == "qwen2"
    assert not (folder / "ran").exists()
    assert capfd.readouterr() == ("", "")


def test_quantised_weights_are_for_the_engine_only_and_needed_by_every_module(tmp_path):
    folder = copied(tmp_path / "model")
    configured(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    reweighted(folder, lambda w: {name.replace("_proj.weight", "_proj.qweight"): each for name, each in w.items()})
    check_model_folder(str(folder), use="sample")
    with pytest.raises(ConfigError, match=r"found quantised weights \(gptq\)"):
        check_model_folder(str(folder))
    reweighted(folder, without("model.layers.1.mlp.up_proj.qweight"))
    with pytest.raises(ConfigError, match=r"1 missing: model\.layers\.1\.mlp\.up_proj$"):
        check_model_folder(str(folder), use="sample")


SHORT = EngineConfig(max_model_len=256)
TINY = ModelConfig(path="pkg://capo_fast.tiny/model")


@pytest.mark.parametrize(
    ("load", "key"),
    [
        (lambda path: load_model(path, "sdpa"), "model.path"),
        (lambda path: check_models(Config(model=TINY, engine=SHORT, critic=CriticConfig(path=path))), "critic.path"),
        (lambda path: start_engine(path, Config(engine=SHORT)), "model.path"),
    ],
    ids=["trainer", "critic", "engine"],
)
def test_every_load_of_a_model_is_checked(load, key, tmp_path, one_rank):
    reweighted(folder := copied(tmp_path / "model"), without(*MLP))
    with pytest.raises(ConfigError, match=rf"^{key}: {folder}: the weight files don't match config.json: 3 missing"):
        load(str(folder))


def test_weights_that_are_not_finite_are_refused_by_file_and_name(tmp_path):
    def put_infinities(weights):
        weights[MLP[0]][3, 5] = torch.inf
        weights[MLP[1]][:] = torch.nan

    reweighted(folder := copied(tmp_path / "model"), put_infinities)
    message = rf"^model\.path: {folder}: found NaN or infinite values in {SINGLE}, 2 with such: {MLP[0]}, {MLP[1]}$"
    with pytest.raises(ConfigError, match=message):
        load_model(str(folder), "sdpa")
    config, weights = read_config(str(folder)), load_file(folder / SINGLE)
    with pytest.raises(ConfigError, match=message):
        check_engine_values(str(folder), config, lambda: {name: checksum(each) for name, each in weights.items()})


def test_a_hub_id_is_checked_like_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    cached, commit = tmp_path / "models--org--name", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    folder = copied(cached / "snapshots" / commit)
    assert check_model_folder("org/name").model_type == "qwen2"
    assert load_tokenizer("org/name").get_vocab() == load_tokenizer(str(folder)).get_vocab()
    reweighted(folder, without(*MLP))
    with pytest.raises(ConfigError, match=r"^model\.path: org/name: the weight files .* 3 missing"):
        check_model_folder("org/name")
    with pytest.raises(ConfigError, match="org/other is neither a model folder nor an id"):
        check_model_folder("org/other")


def test_an_engine_that_ignores_weights_is_refused_with_their_names(tmp_path):
    """vLLM's Qwen3, for example, ignores the bias of o_proj."""
    config, path = read_config(str(copied(tmp_path / "model"))), str(tmp_path / "model")
    weights = {*load_file(tmp_path / "model" / SINGLE), HEAD}
    check_engine_weights(path, config, weights)
    with pytest.raises(ConfigError, match=r"3 on one side only: model\.layers\.1\.mlp\.down_proj\.weight"):
        check_engine_weights(path, config, weights - set(MLP))
    config.tie_word_embeddings = False
    with pytest.raises(ConfigError, match=r"1 on one side only: lm_head\.weight"):
        check_engine_weights(path, config, weights)


def test_a_file_in_place_of_a_folder_is_a_one_line_error(tmp_path):
    (tmp_path / "model").write_text("x")
    with pytest.raises(ConfigError, match="a file, wanted a model's folder or a hub id"):
        resolve_model(str(tmp_path / "model"))


def test_an_engine_context_above_the_model_s_is_refused_with_the_setting(tmp_path):
    folder = copied(tmp_path / "model")
    check_context(read_config(str(folder)), 256)
    with pytest.raises(ConfigError, match=r"^engine\.max_model_len: found 257, wanted at most 256"):
        check_context(read_config(str(folder)), 257)
    configured(folder, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    check_context(read_config(str(folder)), 512)


def test_tokens_beyond_the_vocabulary_are_refused_by_name(tmp_path):
    """Text can contain tokens that are not special; only the chat template can insert special ones."""
    with_tokens(folder := copied(tmp_path / "model"), last=63, special=False)
    with_tokens(folder, last=64)
    load_tokenizer(str(folder))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"chat_template": "<64>" + config["chat_template"]}))
    with pytest.raises(ConfigError, match=r"has 1 tokens beyond the model's vocabulary of 64, as '<64>' with id 64"):
        load_tokenizer(str(folder))
    with_tokens(plain := copied(tmp_path / "plain"), last=65, special=False)
    with pytest.raises(ConfigError, match=r"has 2 tokens beyond"):
        load_tokenizer(str(plain))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer, wanted tokenizer.json"),
        (
            lambda f: ((f / "tokenizer.json").unlink(), (f / "vocab.txt").write_text("a\nb\n")),
            "no tokenizer, found one without a token for '1[+]1'",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json is not JSON"),
        (lambda f: (f / "tokenizer.json").write_text(json.dumps({"model": 3})), "no tokenizer can be loaded"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not JSON"),
    ],
)
def test_an_invalid_tokenizer_is_a_one_line_error(damage, message, tmp_path):
    damage(folder := copied(tmp_path / "model"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)
