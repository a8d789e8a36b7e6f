"""Layers, conversion of values, and errors about keys, arguments and files."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from capo_fast.config import arguments, load_config, types
from capo_fast.config.arguments import note_embedded
from capo_fast.config.core_yaml import CoreLoader
from capo_fast.config.load import (
    DEFAULT_FILE,
    build_config,
    by_key,
    changed_settings,
    checked_layer,
    config_as_dict,
    dump_config,
    read_algorithm,
    read_file,
)
from capo_fast.config.schema import Config
from capo_fast.config.settings import SETTINGS
from capo_fast.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
ALGORITHMS = get_args(SETTINGS["algorithm"].type)


def refused(call: Any, *arguments: Any) -> str:
    """The message of the `ConfigError` that the call raises. Fails if it has several lines."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_defaults_are_the_paper() -> None:
    config = build_config()
    assert config == Config()
    assert (config.credit.outcome_weight, config.credit.process_weight, config.critic.votes) == (2.0, 1.0, 4)
    assert (config.rollout.n, config.rollout.prompts, config.train.epochs) == (16, 12, 4)


def test_capo_equals_the_defaults() -> None:
    assert build_config(read_algorithm("capo")) == Config()


def test_no_arguments_load_the_packaged_tiny_file() -> None:
    assert load_config([]) == load_config(["--config", str(CONFIGS / "tiny.yaml")])
    assert load_config([]).data.path == "pkg://capo_fast.tiny/train.jsonl.gz"


def test_an_own_run_is_told_the_settings_of_the_embedded_task(capsys):
    def note(*argv):
        note_embedded(argv, load_config(argv))
        return capsys.readouterr().err

    kept = (
        "eval.path pkg://capo_fast.tiny/heldout.jsonl, data.system_prompt none, rollout.max_tokens 48, train.lr 0.0002"
    )
    assert kept in note("--data.path", "mine.jsonl") and "critic.prompt" in note("--model.path", "mine")
    own = ["--model.path", "mine", "--algorithm", "grpo", "--data.path", "mine", "--eval.path", "none"]
    own += ["--train.lr", "1e-6", "--data.system_prompt", "none"]
    assert "embedded task: rollout.max_tokens 48; start from a file of configs/" in note(*own)
    assert note(*own, "--rollout.max_tokens", "9") == note() == note("--config", DEFAULT_FILE, *own) == ""


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_sets_its_keys_on_tiny(name: str) -> None:
    flat = by_key(load_config(["--config", str(CONFIGS / "tiny.yaml"), "--algorithm", name]))
    keys = read_algorithm(name)
    assert keys and "algorithm" not in keys, "its name is the file's, once"
    assert {key: flat[key] for key in keys} == keys
    assert (flat["algorithm"], flat["train.lr"], flat["rollout.prompts"]) == (name, 2e-4, 16)


def test_every_algorithm_has_one_file() -> None:
    assert {path.stem for path in (CONFIGS / "algorithms").iterdir()} == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{"train.lr": 1}, {"train.lr": 2}], {"train.lr": 2.0}),
        ([{"train": {"lr": 1, "steps": 5}}, {"train.lr": 2}], {"train.lr": 2.0, "train.steps": 5}),
        ([{"algorithm": "dapo"}], {"loss.clip_high": 0.28, "train.truncated": "penalise"}),
        # the layer's own keys win over its algorithm's, in whichever order they are written
        ([{"loss.clip_high": 0.5, "algorithm": "dapo"}], {"loss.clip_high": 0.5, "loss.kl_coef": 0.0}),
        # an algorithm in a later layer wins over keys of an earlier one
        ([{"loss.clip_high": 0.5}, {"algorithm": "dapo"}], {"loss.clip_high": 0.28}),
        # and undoes the earlier algorithm's settings, but not the file's
        (
            [{"algorithm": "dapo", "train.lr": 1, "loss.kl_coef": 0.5}, {"algorithm": "grpo"}],
            {"algorithm": "grpo", "loss.clip_high": 0.2, "train.dynamic_sampling": False, "loss.kl_coef": 0.5},
        ),
        # also where the file has the algorithm's own value, but not all of its keys
        ([{"algorithm": "dapo", "loss.kl_coef": 0.0}, {"algorithm": "grpo"}], {"loss.kl_coef": 0.0}),
        # the same algorithm in a later layer sets its keys again
        ([{"algorithm": "dapo", "loss.clip_high": 0.5}, {"algorithm": "dapo"}], {"loss.clip_high": 0.28}),
        ([{"credit.norm": "center", "train": None}], {"credit.norm": "center"}),
        # a section inside a section, in every form
        (
            [{"critic": {"server": {"dtype": "float32"}, "server.max_model_len": 9, "votes": 2}}],
            {"critic.server.dtype": "float32", "critic.server.max_model_len": 9, "critic.votes": 2},
        ),
        (
            [{"critic.server": {"dtype": "float32"}}, {"critic.server.dtype": "bfloat16"}],
            {"critic.server.dtype": "bfloat16"},
        ),
    ],
)
def test_later_layers_win(layers: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    flat = by_key(build_config(*layers))
    assert {key: flat[key] for key in expected} == expected


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("algorithm: dapo\ndata.path: x.jsonl\nrollout: {n: 4, prompts: 4}\nrollout.top_p: 0.5\n")
    config = load_config(["--config", str(file), "--rollout.n=2", "--seed", "7", "--resume", "never"])
    assert (config.rollout.n, config.rollout.prompts, config.rollout.top_p) == (2, 4, 0.5)
    assert (config.seed, config.resume, config.loss.clip_high) == (7, "never", 0.28)


def test_later_files_win(tmp_path: Path) -> None:
    texts = {"a": "seed: 1\ntrain.steps: 1", "b": "seed: 2\nrollout.n: 2", "c": "seed: 3\nalgorithm: dr_grpo"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(f"data.path: x\n{text}\n")
    a, b, c = (str(tmp_path / f"{name}.yaml") for name in texts)
    config = load_config(["--config", a, b, "--rollout.n", "4", "--config", c])
    assert (config.seed, config.train.steps, config.rollout.n, config.algorithm) == (3, 1, 4, "dr_grpo")
    assert config.loss.aggregation == "constant"
    assert load_config(["--config", b, f"--config={a}"]).seed == 1


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        ({}, {}),
        ({"train.steps": 9, "run.dir": "elsewhere", "checkpoint.keep": 1, "engine.kv_cache_gb": 1.0}, {}),
        ({"endpoint.model": "a", "endpoint.retries": 1}, {"endpoint.model": (None, "a")}),
        ({"train.betas": "0.5,0.5", "seed": 2}, {"seed": (0, 2), "train.betas": ((0.9, 0.999), (0.5, 0.5))}),
    ],
)
def test_changed_settings_are_those_that_a_resume_must_keep(now: dict[str, Any], changed: dict[str, Any]) -> None:
    assert changed_settings(Config(), build_config(now)) == changed


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "1e-4", 1e-4),
        ("train.lr", 1, 1.0),
        ("rollout.top_k", "-1", -1),
        ("model.untested", "true", True),
        ("model.untested", "False", False),
        ("train.betas", "0.9, 0.95", (0.9, 0.95)),
        ("train.betas", [0, 0.5], (0.0, 0.5)),
        ("run.dir", "none", None),
        ("run.dir", "Null", None),
        ("eval.limit", "None", None),
        ("eval.limit", "3", 3),
        ("run.keep_rollouts", "none", "none"),
        ("run.keep_rollouts", "5", 5),
        ("credit.norm", "none", "none"),
        ("data.split", "none", "none"),
        ("data.system_prompt", "", ""),
        ("loss.dual_clip", "3", 3.0),
    ],
)
def test_values_are_converted_to_their_setting_s_type(key: str, text: Any, value: Any) -> None:
    read = checked_layer({key: text})[key]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rollout.n", "x", "rollout.n: found 'x', wanted integer"),
        ("rollout.n", "2.5", "found '2.5', wanted integer > 0"),
        ("rollout.n", True, "found true, wanted integer"),
        ("rollout.n", None, "found nothing, wanted integer"),
        ("rollout.n", "none", "found 'none', wanted integer"),
        ("rollout.n", {"a": 1}, "rollout.n: found {'a': 1}"),
        ("train.lr", False, "found false, wanted number"),
        ("train.lr", "nan", "found 'nan', wanted number"),
        ("train.lr", "inf", "wanted number"),
        ("train.lr", "1e999", "wanted number"),
        ("train.lr", float("nan"), "wanted number"),
        ("train.lr", 10**400, "wanted number"),
        ("train.betas", [True, 0.9], "wanted number >= 0 and < 1,number"),
        ("train.betas", "0.9", "wanted number >= 0 and < 1,number"),
        ("train.betas", "0.9,inf", "wanted number >= 0 and < 1,number"),
        ("train.betas", [0.1, 0.2, 0.3], "wanted number >= 0 and < 1,number"),
        ("run.keep_rollouts", True, "wanted integer > 0 | all | none"),
        ("run.keep_rollouts", 0, "run.keep_rollouts: found 0, wanted integer > 0 | all | none"),
        ("train.steps", -1, "train.steps: found -1, wanted integer >= 0"),
        ("rollout.temperature", 0.0, "rollout.temperature: found 0.0, wanted number > 0"),
        ("rollout.top_p", 1.1, "rollout.top_p: found 1.1, wanted number > 0 and <= 1"),
        ("train.betas", (0.9, 1.0), "found (0.9, 1.0), wanted number >= 0 and < 1,number >= 0 and < 1"),
        ("lora.rank", "513", "lora.rank: found '513', wanted integer >= 0 and <= 512"),
        ("run.dir", 3, "wanted text | none"),
        ("model.untested", "maybe", "wanted true | false"),
        ("algorithm", "gpro", "wanted capo | capo-gated | grpo"),
        ("credit.process", None, "found nothing, wanted steps | prefix | outcome | none"),
        ("train", 3, "train: found 3, wanted a mapping"),
        ("critic.server", 3, "critic.server: found 3, wanted a mapping"),
        ("critic", {"server": {"dtype": "int8"}}, "critic.server.dtype: found 'int8', wanted bfloat16 | float32"),
        ("endpoint.extra_body", "low", "found 'low', wanted mapping {name: value}"),
        ("endpoint.extra_body", "{a: [}", "wanted mapping {name: value}"),
    ],
)
def test_a_wrong_value_is_a_one_line_error(key: str, value: Any, expected: str) -> None:
    assert expected in refused(checked_layer, {key: value})


def by_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows."""
    match schema:
        case {"anyOf": kinds}:
            return st.one_of(*map(by_schema, kinds))
        case {"enum": words}:
            return st.sampled_from(words)
        case {"const": word}:
            return st.just(word)
        case {"prefixItems": items}:
            return st.tuples(*map(by_schema, items))
        case {"items": {"type": "string"}}:
            return st.lists(st.from_regex(r"\w+", fullmatch=True), min_size=1).map(tuple)
        case {"items": item}:
            return st.lists(by_schema(item), min_size=1).map(tuple)
        case {"type": "number" | "integer" as kind}:
            return numbers(kind, schema)
        case {"type": "object"}:
            names = st.from_regex("[a-z_]+", fullmatch=True)
            return st.dictionaries(names, st.integers() | st.booleans() | names)
    texts = st.from_regex(r"[\w ./-]+", fullmatch=True) if schema.get("format") == "path" else st.text()
    return {"boolean": st.booleans(), "string": texts, "null": st.none()}[schema["type"]]


def numbers(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if kind == "integer":
        above, below = "exclusiveMinimum" in schema, "exclusiveMaximum" in schema
        return st.integers(low if low is None else low + above, high if high is None else high - below)
    open_ends = {"exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema}
    return st.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)


layers = st.sets(st.sampled_from(list(SETTINGS)), max_size=12).flatmap(
    lambda keys: st.fixed_dictionaries({key: by_schema(SETTINGS[key].schema) for key in sorted(keys)})
)
REPLACED = {key.replace(".step.", ".") for key in SETTINGS if key.startswith("critic.step.")}
"""Refused together with a critic of single steps."""
accepted = layers.filter(
    lambda layer: (
        not REPLACED & layer.keys() or (layer.get("algorithm") != "capo-gated" and layer.get("critic.reads") != "step")
    )
)


@examples(max_examples=25, deadline=None)
@given(accepted)
@example({"model.path": "\x85\U0006ea35"})  # written as Unicode, PyYAML reads it back as something else
@example(
    {"data.split": "1e5", "data.name": "0o7", "data.id_field": "010", "endpoint.model": "yes"}
)  # numbers in one YAML
def test_dumped_settings_load_back_equal(layer: dict[str, Any]) -> None:
    config = build_config(layer)
    assert build_config(yaml.safe_load(dump_config(config))) == config
    assert build_config(yaml.load(dump_config(config), Loader=CoreLoader)) == config
    assert build_config(config_as_dict(config)) == config
    assert checked_layer(checked_layer(layer)) == checked_layer(layer)


@examples(deadline=None)
@given(layers)
@example({"lora.targets": ("q_proj", "v_proj"), "train.betas": (0.9, 0.95)})
def test_a_command_line_equals_a_mapping(layer: dict[str, Any]) -> None:
    words = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in layer.items()}
    _, given_back = arguments.read_arguments([f"--{key}={word}" for key, word in words.items()])
    assert given_back == checked_layer(layer)


def test_dumped_file_loads_back_equal(tmp_path: Path) -> None:
    config = load_config(["--config", str(CONFIGS / "tiny.yaml"), "--algorithm", "gspo", "--loss.clip_high", "0.3"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(["--config", str(tmp_path / "config.yaml")]) == config


def saved_and_loaded(config: Config, *layers: dict[str, Any]) -> Config:
    return build_config(yaml.load(dump_config(config), Loader=CoreLoader), *layers)


def test_another_algorithm_over_a_saved_file_equals_that_algorithm() -> None:
    alone = {name: build_config({"data.path": "x", "algorithm": name}) for name in ALGORITHMS}
    for before, config in alone.items():
        found = {name: saved_and_loaded(config, {"algorithm": name}) for name in ALGORITHMS}
        differing = {name: changed_settings(found[name], alone[name]) for name in ALGORITHMS}
        assert found == alone, (before, differing)
        assert list(map(dump_config, found.values())) == list(map(dump_config, alone.values())), before


def test_another_algorithm_over_a_saved_file_keeps_the_run_s_own_settings() -> None:
    run = build_config({"algorithm": "dapo", "loss.clip_high": 0.5, "train.lr": 1}, {"train.truncated": "mask"})
    values = by_key(saved_and_loaded(run, {"algorithm": "grpo"}))
    assert (values["loss.clip_high"], values["train.lr"], values["train.truncated"]) == (0.5, 1.0, "mask")
    assert (values["loss.kl_coef"], values["train.dynamic_sampling"]) == (Config().loss.kl_coef, False)


def test_a_saved_file_keeps_the_settings_that_a_critic_of_steps_replaces() -> None:
    own = {"critic.prompt": "mine.txt", "critic.max_tokens": 99, "critic.stop": ("a",), "critic.path": "judge"}
    steps = {"critic.reads": "step", "critic.step.path": "of_steps", "critic.step.temperature": 0.1}
    run = build_config(own | steps, {})
    again = saved_and_loaded(run)
    assert (run.critic.path, run.critic.max_tokens, run.critic.stop) == ("of_steps", 512, ())
    assert again == run and dump_config(again) == dump_config(run)
    values = by_key(saved_and_loaded(run, {"critic.reads": "solution"}))
    assert {key: values[key] for key in own} == own and values["critic.temperature"] == 0.7


# ---- keys, arguments and files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.stepz", "train.stepz: unknown setting; did you mean train.steps?"),
        ("steps", "did you mean train.steps?"),
        ("train.learning_rate", "did you mean train.lr?"),
        ("learning_rate", "did you mean train.lr?"),
        ("lr", "did you mean train.lr?"),
        ("lerning_rate", "did you mean train.lr?"),
        ("actor_rollout_ref.rollout.n", "did you mean rollout.n?"),
        ("data.max_response_length", "did you mean rollout.max_tokens?"),
        ("beta", "did you mean loss.kl_coef?"),
        ("actor_rollout_ref.actor.optim.lr", "did you mean train.lr?"),
        ("rollout.n_samples", "rollout.n_samples: unknown setting; --help lists them all"),
        ("train.beta", "did you mean train.betas?"),
        ("verbose", "verbose: unknown setting; --help lists them all"),
        ("tarin.lr", "did you mean train.lr?"),
        ("rollout.max-tokens", "did you mean rollout.max_tokens?"),
        ("sead", "did you mean seed?"),
        ("zzzzzz", "zzzzzz: unknown setting; --help lists them all"),
        ("", "'': unknown setting"),
        ("a\nb", "unknown setting"),
        ("train.lr.x", "did you mean train.lr?"),
    ],
)
def test_the_error_of_an_unknown_key_names_the_nearest_key(key: str, expected: str) -> None:
    assert expected in refused(checked_layer, {key: 1})
    assert expected in refused(arguments.read_arguments, [f"--{key}", "1"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.step", "3"], "did you mean train.steps?"),  # no abbreviations
        (["--seed"], "--seed: needs a value"),
        (["--seed", "--resume", "auto"], "--seed: needs a value"),
        (["train.steps", "3"], "train.steps: unexpected argument"),
        (["--seed", "1", "2"], "2: unexpected argument"),
        (["--train.steps", "-1"], "train.steps: found '-1', wanted integer >= 0"),
        (["--config", "--seed", "1"], "--config: needs a value"),
        (["--seed", "1", "--seed=2"], "seed: given twice"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: can't read the configuration"),
        (["--config", "pkg://capo_fast.tiny/no.yaml"], "has no no.yaml"),
    ],
)
def test_a_bad_command_line_is_a_one_line_error(words: list[str], expected: str) -> None:
    assert expected in refused(load_config, words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found nothing, wanted a mapping"),
        ("# only a comment\n", "found nothing, wanted a mapping"),
        ("- a\n- b\n", "found ['a', 'b'], wanted a mapping"),
        ("seed: 1\ntrain: [1\n", "line 3: malformed YAML"),
        ("seed: 1\n\tresume: auto\n", "line 2: malformed YAML"),
        ("seed: 1\nresume: auto\nseed: 2\n", "line 3: malformed YAML: key seed given twice"),
        ("train:\n  lr: 1\ntrain:\n  steps: 1\n", "line 3: malformed YAML: key train given twice"),
        ("train:\n  lr: 1\n  lr: 2\n", "line 3: malformed YAML: key lr given twice"),
        ("train:\n  lr: 1\ntrain.lr: 2\n", "train.lr: given twice, in its section and with a dot"),
        ("seed: 1\n---\nseed: 2\n", "malformed YAML"),
        ("seed: \x00", "malformed YAML"),
        ("? [a, b]\n: 1\n", "malformed YAML"),
        ("1: 2\n", "1: unknown setting"),
        ("train.stepz: 3\n", "train.stepz: unknown setting; did you mean train.steps?"),
        ("train:\n  stepz: 3\n", "train.stepz: unknown setting; did you mean train.steps?"),
        ("critic:\n  server:\n    dtyp: x\n", "critic.server.dtyp: unknown setting; did you mean critic.server.dtype?"),
        ("train:\n  steps: on\n", "train.steps: found 'on', wanted integer"),
        ("train.stage_timeout_s: 1:30\n", "train.stage_timeout_s: found '1:30', wanted number"),
        ("seed: 12:30:45\n", "seed: found '12:30:45', wanted integer"),
        ("run.dir: $HOME/x\n", "run.dir: found '$HOME/x': $HOME is not expanded here, wanted"),
        ("data.path: a/${DATA}/x.jsonl\n", "${DATA} is not expanded here"),
        ("run.dir: ~nobody_of_this_name/x\n", "there is no user 'nobody_of_this_name'"),
        ('run.dir: "a\\0b"\n', "it contains a NUL character"),
        ("a: " + "[" * 3000, "malformed YAML: nested too deep"),
        (f"seed: {'1' * 5000}\n", "malformed YAML"),
        ("seed: !!python/object:os.system 1\n", "line 1: malformed YAML"),
    ],
)
def test_a_bad_file_is_a_one_line_error_that_names_it(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    message = refused(read_file, file)
    assert message.startswith(str(file)) and expected in message


def test_numbers_and_words_follow_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train.steps: 010\ntrain.lr: 1e-6\nseed: 0o17\ndata: {name: no, split: on, id_field: 2026-11-29}\n")
    numbers = {"train.steps": 10, "train.lr": 1e-6, "seed": 15}
    assert read_file(file) == numbers | {"data.name": "no", "data.split": "on", "data.id_field": "2026-11-29"}


PATHS = [key for key, setting in SETTINGS.items() if "'format': 'path'" in str(setting.schema)]


@pytest.mark.parametrize("key", PATHS)
def test_home_is_expanded_in_every_path(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "a.yaml").write_text(f"{key}: ~/x\n")
    assert read_file(tmp_path / "a.yaml") == {key: "/home/someone/x"} == arguments.read_arguments([f"--{key}=~/x"])[1]
    assert by_key(build_config({key: "pkg://a/b"}))[key] == "pkg://a/b"


def test_every_path_setting_has_the_path_type() -> None:
    of_critics = {"critic.path", "critic.prompt", "critic.step.path", "critic.step.prompt"}
    assert set(PATHS) == {"run.dir", "model.path", "data.path", "eval.path", *of_critics}


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert read_file(tmp_path / "bom.yaml") == {"seed": 1}


def test_an_unreadable_file_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1 # \xff\n")
    assert "malformed YAML" in refused(read_file, tmp_path / "latin.yaml")
    assert "directory" in refused(read_file, tmp_path)


# ---- the modules -----------------------------------------------------------------------------------------------------


def test_importing_loads_no_heavy_library() -> None:
    code = (
        "import sys, capo_fast.config\n"
        "assert 'torch' not in sys.modules\n"
        "import capo_fast.data\n"
        "print(sorted({'transformers', 'vllm', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_norms_equal_the_loss_library_s() -> None:
    from capo_kernels.credit import Norm

    assert types.Norm == Norm
