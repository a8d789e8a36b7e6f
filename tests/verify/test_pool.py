"""The verifier's workers: hanging, killed, failing or orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capo_fast.verify.functions import Item
from capo_fast.verify.pool import VerifierError, VerifierPool, WorkerPool

HERE = Path(__file__).parent
FN = "verify_fns:check"


@pytest.fixture(scope="module", autouse=True)
def functions_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def exits(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def pids(pool: VerifierPool, items: int = 1) -> list[int]:
    return [round(value * 2**40) for value in pool.check([("pid", "")] * items)]  # type: ignore[operator]


def test_results_are_in_order_and_workers_are_reused() -> None:
    with VerifierPool(workers=2, fn=FN) as pool:
        assert pool.check([]) == [] and pool._team == []  # no items start no worker
        pairs = [(str(i), str(i // 2 * 2)) for i in range(200)]
        assert pool.check(pairs) == [i % 2 == 0 for i in range(200)]
        before = set(pids(pool, 50))
        assert set(pids(pool, 50)) <= {worker.process.pid for worker in pool._team} and len(before) <= 2
    assert all(exits(pid) for pid in before)


def test_items_submitted_during_a_check_are_checked_in_one_round(tmp_path: Path) -> None:
    """The three items of the later submissions wait for each other, so one after another they would time out."""

    def meeting(room: str, guests: int) -> tuple[str, str]:
        return "value", f"__import__('verify_fns').meet({str(tmp_path / room)!r}, {guests})"

    with VerifierPool(workers=3, timeout_s=60.0, fn=FN) as pool:
        pool.check([("a", "a")] * 3)
        first = pool.submit([meeting("first", 2)])
        later = [pool.submit([meeting("later", 3)] * count) for count in (1, 2, 0)]
        (tmp_path / "first").mkdir(exist_ok=True)
        (tmp_path / "first" / "guest").touch()
        assert first.result() == [1.0]
        assert [future.result() for future in later] == [[1.0], [1.0, 1.0], []]


def test_a_submission_fails_with_its_function_and_the_next_is_checked() -> None:
    with VerifierPool(workers=1, fn=FN) as pool:
        with pytest.raises(VerifierError, match="the user's own bug"):
            pool.submit([("raise", "")]).result()
        assert pool.submit([("a", "a")]).result() == [True]


def test_a_hung_item_costs_only_itself() -> None:
    with VerifierPool(workers=2, timeout_s=1.0, fn=FN) as pool:
        pool.check([("a", "a")] * 4)
        pairs = [("a", "a"), ("hang", ""), *[("a", "b")] * 20, ("hang in C", ""), ("give up", ""), ("a", "a")]
        assert pool.check(pairs) == [True, None, *[False] * 20, None, None, True]
        assert pool.check([("a", "a")]) == [True]


def test_other_workers_are_undisturbed() -> None:
    with VerifierPool(workers=2, timeout_s=2.0, fn=FN) as pool:
        pool.check([("a", "a")] * 2)
        while sum(worker.ready for worker in pool._team) < 2:
            pool.check([("pid", "")] * 4)
        before = {worker.process.pid for worker in pool._team}
        assert pool.check([("hang", ""), *[("a", "a")] * 50])[1:] == [True] * 50
        assert len(before & {worker.process.pid for worker in pool._team if not worker.dead}) == 1


def test_killed_workers_are_replaced(tmp_path: Path) -> None:
    with VerifierPool(workers=1, fn=FN) as pool:
        (pid,) = pids(pool)
        os.kill(pid, signal.SIGKILL)
        assert exits(pid)
        assert pool.check([("a", "a")]) == [True]
        assert pool.check([("die once", str(tmp_path / "died")), ("a", "b")]) == [False, False]
        assert pool.check([("die", ""), ("a", "a")]) == [None, True]


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        (("raise", "7"), "item 1 .*'raise', '7'.*(?s:.)*KeyError: \"the user's own bug\""),
        (("exit", ""), "(?s:.)*SystemExit"),
        (("value", "2"), "(?s:.)*returned 2.0, which is neither"),
        (("value", "float('nan')"), "(?s:.)*neither a bool nor a float"),
        (("value", "None"), "(?s:.)*TypeError"),
    ],
)
def test_failures_raise_an_error(pair: tuple[str, str], complaint: str) -> None:
    with VerifierPool(workers=1, fn=FN) as pool:
        with pytest.raises(VerifierError, match=complaint):
            pool.check([("a", "a"), pair, ("hang", "")])
        assert pool._team == []


def test_rewards_may_be_fractions_and_the_pool_outlives_a_failure() -> None:
    with VerifierPool(workers=1, fn=FN) as pool:
        with pytest.raises(VerifierError):
            pool.check([("raise", "")])
        assert pool.check([("value", "0.25"), ("value", "1"), ("value", "True")]) == [0.25, 1.0, True]


def test_the_columns_of_a_row_reach_the_function() -> None:
    with VerifierPool(workers=1, fn="verify_fns:columns") as pool:
        items = [Item("", "", {"level": level, "truncated": cut}) for level, cut in ((1, True), (2, False), (3, True))]
        assert pool.check(items) == [0.1, 0.0, 0.3]


def test_a_function_of_lists_has_one_call_and_one_deadline() -> None:
    with VerifierPool(workers=2, timeout_s=1.0, fn="verify_fns:batch") as pool:
        assert pool.check([("a", "b")] * 7) == [0.007] * 7
        assert pool.check([("a", "b"), ("hang", "")]) == [None, None]
        assert pool.check([("die", ""), ("a", "b")]) == [None, None], "tried twice"
        assert pool.check([("a", "b")]) == [0.001]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_an_item_over_the_memory_limit_has_no_verdict_and_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with VerifierPool(workers=1, timeout_s=60.0, fn="verify_fns:hungry", memory_gb=0.2) as pool:
        pairs = [("a", "a"), ("at once", ""), ("bit by bit", ""), ("a", "b")]
        assert pool.check(pairs) == [True, None, None, False]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("capo_fast: warning: ")
    assert "2 of 4 answers have no verdict: a worker had more than 0.2 GiB (reward.memory_limit)" in line


def test_a_worker_pool_returns_any_value() -> None:
    with WorkerPool("verify_fns:anything", workers=1) as pool:
        assert pool.check([("a", "b")]) == [{"a": "b"}]


@pytest.mark.parametrize("fn", ["verify_fns", "verify_fns:", ":check", "a b:c", "verify_fns:check()"])
def test_malformed_function_names_are_refused(fn: str) -> None:
    with pytest.raises(ValueError, match=r"named 'package\.module:function'"):
        VerifierPool(fn=fn)


@pytest.mark.parametrize(
    ("fn", "complaint"),
    [
        ("no_such_module:f", "ModuleNotFoundError"),
        ("verify_fns:absent", "AttributeError"),
        ("verify_fns:not_callable", "not callable"),
    ],
)
def test_functions_that_do_not_load_are_an_error(fn: str, complaint: str) -> None:
    with VerifierPool(workers=2, fn=fn) as pool, pytest.raises(VerifierError, match=f"cannot load .*{complaint}"):
        pool.check([("a", "a")] * 2)


def test_workers_and_timeout_must_be_positive() -> None:
    for wrong in ({"workers": 0}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            VerifierPool(**wrong)  # type: ignore[arg-type]


def test_a_pool_may_be_used_from_short_lived_threads() -> None:
    with VerifierPool(workers=1, fn=FN) as pool:
        worker_pids: list[int] = []
        for _ in range(3):
            thread = threading.Thread(target=lambda: worker_pids.extend(pids(pool)))
            thread.start()
            thread.join()
        assert len(worker_pids) == 3 and len(set(worker_pids)) == 1


PARENT = """
import sys, threading
sys.path.insert(0, {here!r})
from capo_fast.verify.pool import VerifierPool
if __name__ != "__main__":
    raise SystemExit("a worker ran the main script")
pool = VerifierPool(workers=2, timeout_s=1000, fn="verify_fns:check")
pool.check([("a", "a")] * 2)
threading.Thread(target=pool.check, args=([({what!r}, "")],), daemon=True).start()
import time
time.sleep(0.5)
print(*[worker.process.pid for worker in pool._team], flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process's life to its parent's")
@pytest.mark.parametrize("what", ["hang", "hang in C"])
def test_workers_exit_with_a_killed_parent_but_ignore_ctrl_c(what: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(here=str(HERE), what=what))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        try:
            workers = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(workers) == 2
            for pid in workers:
                os.kill(pid, signal.SIGINT)
            time.sleep(0.3)
            assert all(is_running(pid) for pid in workers)
        finally:
            parent.kill()
    assert all(exits(pid) for pid in workers)


def test_workers_import_neither_torch_nor_the_engine() -> None:
    code = "import sys, capo_fast.verify.answers; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "set()"


def test_the_commands_do_not_import_math_verify() -> None:
    code = "import sys, capo_fast.train, capo_fast.evaluate; sys.exit('math_verify' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
