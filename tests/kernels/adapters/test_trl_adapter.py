"""The mixin against TRL's own loss, gradient and metrics, on the same model and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM
from trl_world import (
    COMPLETION,
    LOSS_TYPES,
    PROMPT,
    SEQUENCES,
    SETTINGS,
    VOCAB,
    CapoTrainer,
    GRPOTrainer,
    Outcome,
    Setting,
    advantage_per_token,
    difference,
    make_inputs,
    make_trainer,
    run,
    save_model,
)

import capo_kernels as ck
from capo_kernels.adapters.trl import CapoLossMixin

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trainers(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[CapoTrainer, GRPOTrainer]:
    folder = tmp_path_factory.mktemp("run")
    return make_trainer(CapoTrainer, model, folder), make_trainer(GRPOTrainer, model, folder)


@pytest.fixture(scope="module")
def inputs(trainers: tuple[CapoTrainer, GRPOTrainer]) -> dict[str, Any]:
    return make_inputs(trainers[1], seed=0)


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    assert theirs.grad.norm() > 1e-3
    found = difference(ours, theirs)
    assert all(value < TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_loss_gradient_and_metrics_equal_trls(trainers, inputs, setting: Setting) -> None:
    ours, theirs = (run(trainer, setting, inputs) for trainer in trainers)
    assert_same(ours, theirs)


def test_the_batch_covers_every_branch(trainers, inputs) -> None:
    """Without every branch, the test above would miss a wrong clip."""
    for level in ("token", "sequence"):
        metrics = run(trainers[1], Setting("grpo", level), inputs).metrics
        assert min(metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]) > 0
        assert run(trainers[1], Setting("cispo", level), inputs).metrics["cispo_clip_ratio"] > 0
        plain, bounded = (run(trainers[1], Setting("grpo", level, delta=delta), inputs) for delta in (None, 1.5))
        assert plain.loss != bounded.loss


CHANGES = ["no old log-probs", "evaluation", "no KL correction", "vLLM's ratios", "a sequence without trained tokens"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_other_settings_of_the_loss(trainers, inputs, loss_type: str, level: str, change: str, monkeypatch) -> None:
    inputs = dict(inputs)
    if change == "no old log-probs":
        del inputs["old_per_token_logps"]
    if change == "a sequence without trained tokens":
        inputs["completion_mask"] = inputs["completion_mask"] * torch.tensor([1, 0, 1, 1])[:, None]
    for trainer in trainers:
        monkeypatch.setattr(trainer.args, "use_bias_correction_kl", change != "no KL correction")
        monkeypatch.setattr(trainer, "use_vllm", change == "vLLM's ratios")
    # Sequence mask: one ratio for each sequence, 0 where it is out of bounds.
    inputs["importance_sampling_ratio"] = torch.tensor([1.3, 0.0, 0.6, 2.1])[:, None]
    mode = "eval" if change == "evaluation" else "train"
    ours, theirs = (run(trainer, Setting(loss_type, level, beta=0.5), inputs, mode=mode) for trainer in trainers)
    assert_same(ours, theirs)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_advantages_of_tokens_that_are_constant_over_a_sequence(trainers, inputs, loss_type: str, level: str) -> None:
    setting = Setting(loss_type, level, beta=0.5, delta=1.5)
    per_token = inputs | {"advantages": inputs["advantages"][:, None].expand(SEQUENCES, COMPLETION)}
    ours, theirs = run(trainers[0], setting, per_token), run(trainers[1], setting, inputs)
    # TRL counts clips by sequence for [B] and by token for [B, T].
    theirs.metrics = run(trainers[1], setting, per_token).metrics
    assert_same(ours, theirs)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_advantages_of_tokens(trainers, inputs, loss_type: str) -> None:
    inputs = inputs | {"advantages": advantage_per_token()}
    ours, theirs = (run(trainer, Setting(loss_type, "token", 0.5, 1.5), inputs) for trainer in trainers)
    assert_same(ours, theirs)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_step_credit_against_the_definition_in_float64(trainers, inputs, model: str, level: str) -> None:
    trained = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    lengths = trained.sum(1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    starts = torch.cat([torch.arange(int(n)) % 2 == 0 for n in lengths])
    wrong = (torch.arange(int(starts.sum())) % 3 == 0).float()
    outcome, group = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])
    credit = ck.Credit(starts, wrong, outcome, group, cu_seqlens)
    advantages = ck.token_advantages(credit, torch.ones(int(lengths.sum())).bool())
    per_token = torch.zeros(trained.shape).masked_scatter(trained, advantages)
    assert any(row[mask].unique().numel() > 1 for row, mask in zip(per_token, trained, strict=True))

    ours = run(trainers[0], Setting("grpo", level), inputs | {"advantages": per_token})

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = policy(tokens, attention_mask=attention).logits[:, PROMPT - 1 : -1]
    accumulation = 2
    definition = ck.policy_loss(
        logits[trained],
        inputs["completion_ids"][trained],
        weights=(1 / (SEQUENCES * accumulation * lengths.double()))[:, None].expand(trained.shape)[trained],
        credit=credit,
        old_logprobs=inputs["old_per_token_logps"][trained].double(),
        cu_seqlens=cu_seqlens,
        spec=ck.LossSpec(ratio=level, clip_low=0.2, clip_high=0.3),
    )
    definition.loss.backward()
    grad = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    assert abs(ours.loss - definition.loss) < TOLERANCE
    assert (ours.grad - grad).norm() < TOLERANCE * grad.norm()

    theirs = run(trainers[1], Setting("grpo", level), inputs | {"advantages": per_token})
    mean = per_token.sum(1, keepdim=True) / lengths[:, None]
    spread = run(trainers[0], Setting("grpo", level), inputs | {"advantages": mean})
    assert abs(ours.loss - theirs.loss) < TOLERANCE
    assert (spread.grad - grad).norm() > 0.1 * grad.norm()
    # TRL differentiates a sequence's ratio through all its tokens, whatever their advantages.
    assert ((theirs.grad - grad).norm() > 0.1 * grad.norm()) == (level == "sequence")


def test_a_batch_without_a_trained_token_gives_0_to_every_weight(trainers, inputs) -> None:
    empty = inputs | {"completion_mask": torch.zeros(SEQUENCES, COMPLETION).long()}
    for loss_type in LOSS_TYPES:
        for setting in (Setting(loss_type, "token"), Setting(loss_type, "sequence", beta=0.5)):
            outcome = run(trainers[0], setting, empty)
            assert outcome.loss == 0 and (outcome.grad == 0).all()


def test_training(model: str, tmp_path: Path) -> None:
    """Two updates by `train()` with TRL's defaults except SGD: generation, a reference model, gradient checkpointing,
    old log-probs of an earlier iteration, and token advantages passed as in the README."""

    class Steps:
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            later = torch.arange(output["completion_ids"].shape[1]) / 4
            return output | {"advantages": output["advantages"][:, None] * (1 - later)}

    settings = {"beta": 0.05, "num_iterations": 2, "max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "seed": 3}
    weights, logs = [], []
    for kind in (CapoTrainer, GRPOTrainer):
        trainer = make_trainer(type("Trainer", (Steps, kind), {}), model, tmp_path, **settings)
        start = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - start)
        logs.append(trainer.state.log_history)
    assert weights[1].norm() > 1e-3 and (weights[0] - weights[1]).norm() < TOLERANCE * weights[1].norm()
    assert len(logs[0]) == len(logs[1]) == 3  # two steps and the summary
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        timed = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
        same = ours.keys() - timed
        assert {name: ours[name] for name in same} == pytest.approx({name: theirs[name] for name in same}, abs=1e-4)
    assert {"kl", "entropy", "clip_ratio/low_min", "clip_ratio/high_max", "clip_ratio/region_mean"} <= logs[0][0].keys()


def test_lora(model: str, tmp_path: Path, inputs) -> None:
    outcomes = []
    for kind in (CapoTrainer, GRPOTrainer):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        outcomes.append(run(make_trainer(kind, policy, tmp_path), Setting("grpo", "token"), inputs))
        assert policy.get_output_embeddings().weight.grad is None
    assert_same(*outcomes)


def gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = Gemma2Config(vocab_size=VOCAB, num_key_value_heads=1, initializer_range=0.5, pad_token_id=0, **sizes)
    config.final_logit_softcapping, config._attn_implementation = 2.0, "eager"
    return Gemma2ForCausalLM(config)


def test_capped_logits_and_a_tied_head(tmp_path: Path) -> None:
    ours, theirs = (make_trainer(kind, gemma(), tmp_path, temperature=0.7) for kind in (CapoTrainer, GRPOTrainer))
    inputs = make_inputs(theirs, seed=0)
    for setting in (Setting("dapo", "token", 0.5), Setting("grpo", "sequence", 0.5)):
        assert_same(run(ours, setting, inputs), run(theirs, setting, inputs))


def test_a_head_in_float32_over_a_model_in_bfloat16(model: str, tmp_path: Path, inputs) -> None:
    outcomes = []
    for kind in (CapoTrainer, GRPOTrainer):
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        trainer = make_trainer(kind, policy, tmp_path, cast_lm_head_to_fp32=True)
        outcome = run(trainer, Setting("grpo", "token"), inputs)
        # The rest of the gradient went through bfloat16, where another order of sums rounds differently.
        outcomes.append((outcome.loss, policy.lm_head.weight.grad))
    assert (outcomes[0][0] - outcomes[1][0]).abs() < TOLERANCE
    assert outcomes[0][1].dtype == torch.float32
    assert (outcomes[0][1] - outcomes[1][1]).norm() < TOLERANCE * outcomes[1][1].norm()


def test_autocast(trainers, inputs, monkeypatch) -> None:
    heads = []

    def spy(hidden, weight, *args, **kwargs):
        heads.append((hidden.dtype, weight.dtype))
        return ck.linear_policy_loss(hidden, weight, *args, **kwargs)

    monkeypatch.setattr("capo_kernels.adapters.grpo.linear_policy_loss", spy)
    exact = run(trainers[1], Setting("grpo", "token"), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run(trainer, Setting("grpo", "token"), inputs) for trainer in trainers)
    errors = [(outcome.grad - exact.grad).norm() / exact.grad.norm() for outcome in (ours, theirs)]
    assert heads == [(torch.bfloat16, torch.bfloat16)]
    assert errors[0] <= 2 * errors[1] + 2**-8


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("loss_type", {"loss_type": "sapo"}),
        ("loss_type", {"loss_type": "vespo"}),
        ("loss_type", {"loss_type": "luspo", "importance_sampling_level": "sequence"}),
        ("off_policy_mask_threshold", {"off_policy_mask_threshold": 0.5}),
        ("top_entropy_quantile", {"top_entropy_quantile": 0.2}),
        ("entropy_coef", {"entropy_coef": 0.01}),
        ("use_adaptive_entropy", {"use_adaptive_entropy": True}),
        ("delta", {"delta": 1.2, "epsilon": 0.2}),
    ],
    ids=lambda x: next(iter(x.values())) if isinstance(x, dict) else x,
)
def test_unsupported_settings_are_refused_when_the_trainer_is_made(
    name: str, settings: dict[str, Any], model: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got "):
        make_trainer(CapoTrainer, model, tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "holder", "attribute", "value"),
    [
        ("router_aux_loss_coef", "", "aux_loss_enabled", True),
        ("fsdp", "", "is_fsdp_enabled", True),
        ("deepspeed", "", "is_deepspeed_enabled", True),
        ("model.config.logit_scale", "model.config", "logit_scale", 0.5),
        ("model.config.logits_scaling", "model.config", "logits_scaling", 8.0),
    ],
)
def test_settings_outside_the_loss_are_refused(trainers, inputs, name, holder, attribute, value, monkeypatch) -> None:
    target = trainers[0]
    for part in filter(None, holder.split(".")):
        target = getattr(target, part)
    monkeypatch.setattr(target, attribute, value, raising=False)
    with pytest.raises(ValueError, match=f"^{name}: got "):
        trainers[0].compute_loss(trainers[0].model, inputs)


def test_the_order_of_the_bases() -> None:
    wanted = r"^Trainer: got GRPOTrainer before CapoLossMixin, want class Trainer\(CapoLossMixin, GRPOTrainer\)"
    with pytest.raises(TypeError, match=wanted):
        type("Trainer", (GRPOTrainer, CapoLossMixin), {})
    mixin = type("Logs", (), {"compute_loss": lambda self, *args: super(self).compute_loss(*args)})
    type("Trainer", (mixin, CapoTrainer), {})


def test_other_refusals(trainers, inputs, monkeypatch) -> None:
    ours = trainers[0]
    with pytest.raises(ValueError, match=r"^return_outputs: got True"):
        ours.compute_loss(ours.model, inputs, return_outputs=True)
    with pytest.raises(ValueError, match="pixel_values"):
        ours.compute_loss(ours.model, inputs | {"pixel_values": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^advantages: got shape \[4, 5\], want \[4\], \[4, 1\] or \[4, 6\]"):
        ours.compute_loss(ours.model, inputs | {"advantages": torch.zeros(4, 5)})
    monkeypatch.setattr(ours.model, "lm_head", torch.nn.Sequential(ours.model.lm_head))
    with pytest.raises(ValueError, match="output embeddings: got Sequential"):
        ours.compute_loss(ours.model, inputs)
