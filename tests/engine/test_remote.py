"""Sending weights to engines on other ranks, and engines that differ."""

from __future__ import annotations

import pytest
import torch
from scripted_engine import ScriptedEngine

from capo_fast.engine import remote
from capo_fast.engine.base import EngineError
from capo_fast.engine.remote import EngineHost, RemoteEngines, receive_weights, send_weights


class Wire:
    """A link within one process: the receiver reads the sender's messages in order."""

    def __init__(self):
        self.sent, self.sizes, self.sending = [], [], True

    def share(self, value, source):
        if not self.sending:
            return self.sent.pop(0)
        self.sent.append(value)

    def broadcast(self, tensor, source):
        if self.sending:
            self.sizes.append(tensor.nbytes)
            self.sent.append(tensor)
        else:
            tensor.copy_(self.sent.pop(0))


@pytest.fixture
def wire():
    return Wire()


def test_weights_arrive_unchanged_in_few_broadcasts(wire, monkeypatch):
    monkeypatch.setattr(remote, "BUCKET", 100)
    shapes = {"a": (3, 4), "b": (), "c": (2, 5), "large": (7, 9), "d": (0, 3), "e": (6,)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights["half"] = torch.randn(5).to(torch.bfloat16)
    send_weights(wire, weights.items())
    wire.sending = False
    found = dict(receive_weights(wire, torch.device("cpu")))
    assert list(found) == list(weights) and not wire.sent
    assert all(torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype for name in weights)
    assert wire.sizes == [92, 252, 24, 10], "a, b and c together; the large one alone; another dtype separately"


class Engines:
    """A stand-in for the crossing to engines of one process each."""

    lane = None

    def __init__(self, *engines):
        self.engines = engines

    def order(self, name, *arguments):
        self.answers = [getattr(engine, name)(*arguments) for engine in self.engines]

    def reply(self):
        return self.answers


def engine_with(weight, bias):
    engine = ScriptedEngine(None, lambda weights, sequence: [-float(token) - bias for token in sequence[1:]])
    engine.load(iter([("w", torch.tensor(weight))]))
    return engine


def test_engines_must_hold_the_same_weights():
    same = RemoteEngines(Engines(engine_with([1.0, 2.0], 0), engine_with([1.0, 2.0], 0)), 1e-3)
    assert same.checksums().keys() == {"w"}
    other = RemoteEngines(Engines(engine_with([1.0, 2.0], 0), engine_with([1.0, 2.5], 0)), 1e-3)
    with pytest.raises(EngineError, match=r"^two engines differ: w has checksum \S+ and \S+$"):
        other.checksums()


def test_engines_must_compute_the_same_log_probs():
    same = RemoteEngines(Engines(engine_with([1.0], 0), engine_with([1.0], 5e-4)), 1e-3)
    assert same.score([(1, 2, 3), (4, 5)]) == [[-2.0, -3.0], [-5.0]]
    for bias in (0.01, float("nan")):
        with pytest.raises(EngineError, match=r"^two engines differ: the probe's log-probs by"):
            RemoteEngines(Engines(engine_with([1.0], 0), engine_with([1.0], bias)), 1e-3).score([(1, 2, 3)])


def test_weights_that_an_engine_does_not_read_are_removed_from_the_link(wire):
    class Lazy(ScriptedEngine):
        def load(self, weights):
            next(weights)

    send_weights(wire, [("a", torch.ones(2)), ("b", torch.ones(3))])
    wire.sending = False
    crossing = Engines()
    crossing.lane = wire
    EngineHost(Lazy(None), crossing, torch.device("cpu")).load()
    assert not wire.sent
