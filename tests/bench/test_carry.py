"""The evidence on rollout.carry: existing runs are kept, and differences are paired by seed."""

from __future__ import annotations

import bench.evidence.carry as carry


def run_of(*rates):
    curve = [[4 * i, rate] for i, rate in enumerate(rates)]
    return {"curve": curve, "staleness": 0.1, "carried": 4.0, "cpu_s": 30.0}


def test_differences_are_paired_by_seed(tmp_path, monkeypatch):
    out = tmp_path / "carry.json"
    runs = {"weighted": {"100": run_of(0.1, 0.4), "101": run_of(0.1, 0.6)}, "carry": {"101": run_of(0.1, 0.5)}}
    carry.write_runs(out, runs)
    monkeypatch.setattr(carry, "start_engine", lambda *_: 1 / 0)
    carry.run_missing(["weighted"], [100, 101], 16, out)
    assert carry.read_runs(out) == runs
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in carry.table(runs).splitlines()]
    assert [row[4] for row in rows if row[0] == "carry"] == ["-0.100"]
