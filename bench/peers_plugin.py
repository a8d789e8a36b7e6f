"""The pytest plugin of `bench/peers.py`: it replaces another library's functions by adapters before the library's tests
import them, and writes the outcome of each test."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

REFUSED = re.compile(r"loss_type: got '(sapo|luspo|vespo)', want .+")
"""The adapters' error for an unsupported loss_type. Any other error is a failure."""

BEYOND = {
    "test_sequence_level_rejects_unsupported_loss_types[cispo]": "cispo with sequence ratios",
    "test_triton_sequence_level_rejects_unsupported_loss_types[cispo]": "cispo with sequence ratios",
}
"""Tests that expect an error for a case that the adapters support."""

LARGE = re.compile(r"-(1024|4096|5000|64000|151936)\b")
"""Sizes that take seconds each on a CPU."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("capo")
    group.addoption("--adapter", action="append", metavar="MODULE:NAME=MODULE:NAME", help="function and its adapter")
    group.addoption("--results", type=Path, help="file of results, a line of JSON per test")
    group.addoption("--short", action="store_true", help="the small sizes, every fifth test")


def pytest_configure(config: pytest.Config) -> None:
    config.reached = set()
    for pair in config.option.adapter:
        theirs, _, ours = pair.partition("=")
        module, _, name = theirs.partition(":")
        setattr(importlib.import_module(module), name, _recording(config, _load(ours)))


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _recording(config: pytest.Config, adapter: Callable) -> Callable:
    """The adapter, with each call recorded for the running test."""

    def call(*args: Any, **kwargs: Any) -> Any:
        config.reached.add(config.running)
        return adapter(*args, **kwargs)

    return call


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.short:
        items[:] = [item for item in items if not LARGE.search(item.name)][::5]


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.running = item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, pytest.TestReport, Any]:
    report = yield
    if call.when == "call" or report.outcome != "passed":
        outcome, reason = _outcome(item, call, report)
        line = {"file": item.location[0], "name": item.originalname, "outcome": outcome, "reason": reason}
        with item.config.option.results.open("a", encoding="utf-8") as results:
            results.write(json.dumps(line) + "\n")
    return report


def _outcome(item: Any, call: pytest.CallInfo, report: pytest.TestReport) -> tuple[str, str]:
    if report.skipped:
        return "skipped", ""
    if item.nodeid not in item.config.reached:
        return "apart", ""
    if report.passed:
        return "passed", ""
    assert call.excinfo is not None
    for error in _chain(call.excinfo.value):
        if isinstance(error, ValueError) and REFUSED.fullmatch(str(error)):
            return "refused", str(error)
    if item.name in BEYOND and "DID NOT RAISE" in str(call.excinfo.value):
        return "beyond", BEYOND[item.name]
    return "failed", f"{item.name}: {str(call.excinfo.value).strip().splitlines()[0]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
