"""Memory levers change only memory: each is compared with the plain run, also after a resume."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from learner_ranks import TRAIN, make_learner, train

from capo_fast.config.schema import Config, LossConfig, PolicyConfig, RolloutConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.manifest import RUN_SECTIONS
from capo_fast.policy.model import full_weights
from capo_fast.policy.optimizer import has_narrow_moments, make_optimizer
from capo_fast.runtime.ranks import ranks

Weights = dict[str, torch.Tensor]

CONFIG = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=replace(TRAIN, minibatches=2, weight_decay=0.1),
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)


def with_lever(**values: object) -> Config:
    """Settings by keyword: `train__optimizer` is train.optimizer."""
    config = CONFIG
    for key, value in values.items():
        section, name = key.split("__")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def trained(config: Config, start: Checkpointer | None = None, save: Checkpointer | None = None) -> Weights:
    """Weights after one step, from the start or from a checkpoint."""
    learner = make_learner(config)
    if start is not None:
        start.newest_whole()[0].load(learner)
    train(learner, config)
    if save is not None:
        save.save(1, learner, dict.fromkeys(RUN_SECTIONS))
    return {name: weight.clone() for name, weight in full_weights(learner.policy, torch.float32)}


LEVERS = {
    "every second layer recomputed": ({"policy__gradient_checkpointing": 2}, 0),
    "activations offloaded": ({"policy__gradient_checkpointing": True, "policy__offload_activations": True}, 0),
    "optimizer offloaded": ({"train__offload_optimizer": True}, 0),
    "fused": ({"train__optimizer": "adamw-fused"}, 1e-5),
    "fused and offloaded": ({"train__optimizer": "adamw-fused", "train__offload_optimizer": True}, 1e-5),
}
"""Settings, and the largest difference of a weight after two steps of 1e-3."""


@dataclass(frozen=True)
class Plain:
    """Results of the run without levers."""

    weights: Weights
    saved: Checkpointer
    after: Weights
    """Weights one step later."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    saved = Checkpointer(tmp_path_factory.mktemp("plain"), keep=1)
    with ranks():
        return Plain(trained(CONFIG, save=saved), saved, trained(CONFIG, start=saved))


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_trains_like_the_plain_run_also_after_a_resume(name, plain, one_rank, tmp_path):
    """The plain run's checkpoint resumes with the lever and the other way round: their tensors are the same."""
    values, tolerance = LEVERS[name]
    config, saved = with_lever(**values), Checkpointer(tmp_path, keep=1)
    torch.testing.assert_close(trained(config, save=saved), plain.weights, rtol=0, atol=tolerance)
    for settings, start in ((config, plain.saved), (CONFIG, saved)):
        torch.testing.assert_close(trained(settings, start=start), plain.after, rtol=0, atol=tolerance)


def test_moments_in_8_bits_take_nearly_the_same_steps_and_resume(one_rank, tmp_path):
    """Most weights change as with float32 moments. A weight whose gradient is tiny compared with the largest of its
    block may not: its second moment rounds to zero."""
    pytest.importorskip("torchao", reason="torchao, an optional package, is not installed")
    config, saved = with_lever(train__optimizer="adamw-8bit"), Checkpointer(tmp_path, keep=1)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step for each shape
        start, plain, ours = (flat(x) for x in (first(config), trained(CONFIG), trained(config, save=saved)))
        learner = make_learner(config)
        for _ in range(2):
            train(learner, config)
        resumed = trained(config, start=saved)
        offloaded = trained(with_lever(train__optimizer="adamw-8bit", train__offload_optimizer=True))
    assert (ours - plain).abs().quantile(0.99) < 0.1 * CONFIG.train.lr
    assert rms(ours - plain) < 0.25 * rms(plain - start)
    torch.testing.assert_close(resumed, dict(full_weights(learner.policy, torch.float32)), rtol=0, atol=0)
    assert torch.equal(flat(offloaded), ours)


def test_the_moments_in_8_bits_depend_only_on_shapes():
    shapes = [(151936, 3584), (3584, 3584), (512, 3584), (4096,), (16, 1536), (100, 4096)]
    assert [has_narrow_moments(torch.empty(shape, device="meta")) for shape in shapes] == [True] * 3 + [False] * 3


def test_a_missing_torchao_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ConfigError, match=r"train\.optimizer: adamw-8bit needs the package torchao, which can't be"):
        make_optimizer([torch.nn.Parameter(torch.zeros(4))], with_lever(train__optimizer="adamw-8bit").train)


def first(config: Config) -> Weights:
    return {name: weight.clone() for name, weight in full_weights(make_learner(config).policy, torch.float32)}


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in weights.values()])


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()
