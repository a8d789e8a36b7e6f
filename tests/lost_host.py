"""Lose one of two hosts during a step and print how the job ends on both: `python -m tests.lost_host WAY HOST FOLDER`.

WAY is `killed` (its launcher and ranks) or `cut` (its cable: the job ends after a minute). HOST is `left`, which has
torchrun's store and rank 0, or `right`. FOLDER gets the run and both logs. Needs root; not part of the test suite.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import forked
import hosts_run
from two_hosts import ForkedHost, two_forked_hosts

SETTINGS = ["--train.steps", "2", "--checkpoint.every", "1", "--rollout.prompts", "2", "--eval.path", "none"]
LONGEST_S = 200


def main(way: str, name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    forked.start_server()
    with two_forked_hosts(folder) as hosts:
        mark = folder / "mark"
        for host in hosts:
            host.torchrun(hosts_run.main, str(mark), name, "2", "--run.dir", str(folder / "run"), *SETTINGS)
        while not mark.exists():
            time.sleep(0.1)
        [lost] = [host for host in hosts if host.name == name]
        lost.kill() if way == "killed" else lost.cut()
        start = time.monotonic()
        for host in sorted(hosts, key=lambda host: host is lost):
            show(host, start)


def show(host: ForkedHost, start: float) -> None:
    status = host.join(LONGEST_S)
    print(f"{host.name}: exit status {status} after {time.monotonic() - start:.0f} s")
    for line in host.log.read_text().splitlines():
        if line.startswith("capo_fast"):
            print(f"  {line}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
