"""`python -m bench.report`: marks, footnotes, plots and the device; unreadable files are named."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from made_results import BOUND, CASE, content, entry, make, rows_of, write

import bench.report.__main__ as report
from bench.report.runs import is_run, read_run


@pytest.mark.parametrize(
    ("ms", "bound", "text"),
    [
        (10.49, 5.0, "+4.9 %"),
        (10.51, 5.0, "▲ 5.1 % slower"),
        (9.51, 5.0, "-4.9 %"),
        (9.49, 5.0, "▼ 5.1 % faster"),
        (20.0, 10.0, "+0.0 %"),  # the whole machine is slower
        (10.0, 4.0, "▲ 25.0 % slower"),
        (12.0, None, "time +20.0 %"),
    ],
)
def test_a_change_of_more_than_five_percent_against_the_bound_is_marked(tmp_path, ms, bound, text):
    write(tmp_path, "new.json", content(entry("capo cpu", ms, bound=bound), day=2))
    write(tmp_path, "old.json", content(entry("capo cpu", 10.0, bound=5.0), day=1))
    page, shown = make(tmp_path)
    assert rows_of(page)["**capo cpu**"]["change"] == text
    assert (f"policy_loss {CASE}, capo cpu against the bound: {text}" in shown) == (text[0] in "▲▼")


def test_without_a_bound_no_share_is_shown(tmp_path):
    write(tmp_path, "a.json", content(entry("capo cpu", 9.0), entry("torch eager", 18.0)))
    page, _ = make(tmp_path)
    assert "share of the bound" not in rows_of(page)["torch eager"]
    assert not list(tmp_path.glob("results/cpu/plots/share*"))


def test_a_provider_that_computes_less_has_a_footnote(tmp_path):
    one, two = ({"less": text, "kind": "cross-entropy"} for text in ("no clip", "no credit"))
    write(
        tmp_path, "a.json", content(entry("capo cpu", 9.0), *(entry(n, 1.0, **one) for n in "ab"), entry("c", 2, **two))
    )
    page, _ = make(tmp_path)
    assert {"a¹", "b¹", "c²"} <= rows_of(page).keys()
    assert page.count("- ¹ computes less than ours: no clip\n- ² computes less than ours: no credit\n") == 1


def test_the_same_results_give_the_same_bytes(tmp_path):
    runs = [
        content(
            BOUND, *(entry(f"capo {i}", i + 9.0, bound=8.0, tokens=t) for t in (512, 128) for i in range(3)), day=day
        )
        for day in (1, 2)
    ]
    for folder in ("one", "two"):
        for name, run in zip("ab", runs, strict=True):
            write(tmp_path / folder, f"{name}.json", run)
        make(tmp_path / folder)
    one, two = (sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    assert sum(p.suffix == ".svg" for p in one) == 2


def test_only_cases_with_data_have_plots(tmp_path):
    first = [BOUND, entry("capo cpu", 12.0, bound=10.0), entry("torch eager", 60.0, bound=10.0)]
    write(tmp_path, "a.json", content(*first))
    plots = tmp_path / "results/cpu/plots"
    plots.mkdir(parents=True)
    (plots / "of-before.svg").touch()
    make(tmp_path)
    assert [path.name for path in plots.iterdir()] == ["share-policy_loss.svg"]
    second = [entry("capo cpu", 3.0, tokens=128), entry("torch eager", 15.0, tokens=128)]
    narrow = {"vocab": 32_000, "case": "llama2-7b-512-float32", "model": "llama2-7b"}
    third = [entry("capo cpu", 2.0, **narrow)]
    write(tmp_path, "a.json", content(*first, *second, *third))
    page, _ = make(tmp_path)
    names = {"memory-policy_loss-512-float32.svg", "share-policy_loss.svg", "time-policy_loss-qwen2.5-0.5b-float32.svg"}
    assert {path.name for path in plots.iterdir()} == names
    assert all(f"](results/cpu/plots/{name})" in page for name in names)
    texts = {name: "".join(ElementTree.parse(plots / name).getroot().itertext()) for name in names}
    assert "torch eager" in texts["time-policy_loss-qwen2.5-0.5b-float32.svg"]
    assert "torch eager" not in texts["memory-policy_loss-512-float32.svg"]  # at one V only


def test_the_device_is_named(tmp_path):
    gpu = {"device": "GPU of a kind", "driver": "580.1", "cuda": "13.0", "suite": "cuda"}
    run = content(BOUND, entry("capo cuda", 12.0, bound=10.0), **gpu)
    run["commit_info"]["dirty"] = True
    write(tmp_path, "a.json", run)
    for text in make(tmp_path):
        assert "GPU of a kind" in text
        assert "2026-11-01 12:00 UTC, commit 0123456789 (dirty: with changes that are in no commit)" in text
        assert "driver 580.1, CUDA 13.0, 2 threads, torch 2.13.0" in text


def test_other_files_and_dry_runs_are_named_and_left_out(tmp_path):
    write(tmp_path, "a.json", content(entry("capo cpu", 12.0)))
    write(tmp_path, "dry.json", content(entry("capo cpu", 777.0), suite="dry", day=2))
    write(tmp_path, "evidence.json", {"machine": "x86_64", "results": {"capo": []}})
    write(tmp_path, "list.json", "[1]")
    write(tmp_path, "empty_run.json", content(day=3))
    page, shown = make(tmp_path)
    assert "777" not in page
    for name in ("dry", "evidence", "list", "empty_run"):
        assert re.search(rf"left out: .*/{name}\.json: ", shown)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("", "bad.json: no JSON"),
        ('{"machine_info": {}, "bench', "bad.json: no JSON"),
        (
            content({"stats": {"data": [1.0]}, "extra_info": {}}),
            "bad.json: not a file of `pytest bench/`: .*'kernel'",
        ),
        (content(entry("capo", 1.0)) | {"datetime": "yesterday"}, "bad.json: not a file of .* 'yesterday'"),
        (
            content(entry("capo", 1.0), suite="tpu"),
            "bad.json: not a file of .* suite 'tpu', wanted one of cuda, cpu, dry",
        ),
        (
            content(entry("capo", 1.0), threads=1, day=2),
            "a CPU, 2 threads, bad.json in the same folder of .* a CPU, 1 thread: a folder is one device",
        ),
    ],
)
def test_a_broken_file_stops_the_command_and_is_named(tmp_path, monkeypatch, found, message):
    write(tmp_path, "a.json", content(entry("capo cpu", 12.0)))
    write(tmp_path, "bad.json", found)
    with pytest.raises(SystemExit, match=message) as ended:
        run_main(monkeypatch, tmp_path)
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "BENCHMARKS.md").exists()


def test_no_results(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="has no results; `pytest bench/` makes them"):
        run_main(monkeypatch, tmp_path)


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    words = ["--results", str(folder / "results"), "--out", str(folder / "BENCHMARKS.md")]
    monkeypatch.setattr(sys, "argv", ["report", *words])
    report.main()


def test_the_end_to_end_results_have_a_table(tmp_path):
    pytest.importorskip("bench.end_to_end.figures")
    work = {"model": "tiny", "prompts": 16, "n": 8, "max_tokens": 48, "tokens": None, "updates": 2, "live": 0.5}
    about = {
        "processor": "a CPU",
        "cores": 2,
        "threads": 2,
        "python": "3.11",
        "versions": {"trl": "1.16"},
        "commit": "0123",
        "command": "python -m bench.end_to_end",
        "best": "trl",
        "work": work,
        "rounds": {},
        "summary": {"capo": {"step, ms": [940.0, 920.0, 1001.0]}},
    }
    write(tmp_path, "end_to_end.json", about)
    page, _ = make(tmp_path)
    assert "| step, ms | 940 [920, 1001] |" in page and "2 cores of a CPU, 2 threads, commit 0123" in page
    assert "tiny: 16 prompts x 8 rollouts of at most 48 tokens, 2 updates per step, 50% of the groups live" in page


def test_committed_results_can_be_read():
    """The committed results give a page."""
    for path in (Path(report.__file__).parents[1] / "results").glob("*/*.json"):
        found = json.loads(path.read_text())
        assert not is_run(found) or read_run(path, found).rows
