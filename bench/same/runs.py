"""The code of a commit in a separate folder, and runs with it.

WORK/trees/0f3a...             the files of a commit, by Git's tree id
WORK/base/0f3a.../capo/run     the folder of a run; log.txt is in its parent, and done.json once it is complete
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

from bench.same.cases import SMALL, Case

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = Path("kernels/capo_kernels/lib")
WORKTREE = "worktree"
TIME_LIMIT_S = 900


class RunError(Exception):
    """A run of a case failed; the message is one line."""


# ---- the trees ----


def _git(*words: str, **environment: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, env=os.environ | environment, capture_output=True)
    if done.returncode:
        sys.exit(f"git {words[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def tree_of(revision: str) -> str:
    """Git's tree id of a commit; for `worktree` that of this checkout's files, committed or not."""
    if revision != WORKTREE:
        return _git("rev-parse", "--verify", f"{revision}^{{tree}}").decode().strip()
    with TemporaryDirectory() as folder:
        index = str(Path(folder, "index"))
        _git("add", "--all", GIT_INDEX_FILE=index)
        return _git("write-tree", GIT_INDEX_FILE=index).decode().strip()


def unpack(tree: str, work: Path) -> Path:
    """A folder with the files of a tree and a library built from its sources."""
    folder = work / "trees" / tree[:12]
    if folder.exists():
        return folder
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(_git("archive", tree))) as archive:
        archive.extractall(temporary, filter="data")
    (temporary / "capo_fast/configs").symlink_to("../configs")  # as setup.py maps it
    if _git("rev-parse", f"{tree}:csrc") == _git("rev-parse", f"{tree_of(WORKTREE)}:csrc"):
        shutil.copytree(REPOSITORY / LIBRARY, temporary / LIBRARY)
    else:
        subprocess.run([sys.executable, "csrc/libraries.py", LIBRARY], cwd=temporary, stdout=sys.stderr, check=True)
    _check_imports(temporary)
    temporary.rename(folder)
    return folder


def _environment(tree: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(tree), str(tree / "kernels")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _check_imports(tree: Path) -> None:
    """Raises RunError if a package would be imported from elsewhere, such as an editable install."""
    code = "import importlib.util as u; print(*(u.find_spec(name).origin for name in ('capo_fast', 'capo_kernels')))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tree, env=_environment(tree), stdout=subprocess.PIPE, text=True, check=True)
    for path in done.stdout.split():
        if not Path(path).is_relative_to(tree):
            raise RunError(f"{path} is imported, wanted the package in {tree}")


# ---- the runs ----


def ensure_run(case: Case, tree: Path, folder: Path) -> Path:
    """The folder of a complete run of a case with the code in `tree`; an existing run is kept. Raises RunError."""
    run, done = folder / "run", folder / "done.json"
    wanted = json.dumps([*SMALL, *case.arguments])
    if done.exists() and done.read_text() == wanted:
        return run
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with case.around(tree, folder) as further:
        command = [*_launcher(case), f"--run.dir={run}", *SMALL, *case.arguments, *further]
        if case.killed:
            _kill_after_a_step(command, tree, folder)
        _finish(command, tree, folder)
    done.write_text(wanted)
    return run


def _launcher(case: Case) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.ranks}"]
    return [sys.executable, *(torchrun if case.ranks > 1 else []), "-m", "capo_fast.train"]


@contextmanager
def _started(command: Sequence[str], tree: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which is killed at the end of the block."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=tree, env=_environment(tree), stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _kill_after_a_step(command: Sequence[str], tree: Path, folder: Path) -> None:
    with _started(command, tree, folder) as process:
        while process.poll() is None and not (folder / "run/checkpoints/step_000001").exists():
            time.sleep(0.01)
    if process.returncode != -SIGKILL:
        raise RunError(f"exit status {process.returncode} before the kill")


def _finish(command: Sequence[str], tree: Path, folder: Path) -> None:
    with _started(command, tree, folder) as process:
        try:
            status = process.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"not finished after {TIME_LIMIT_S} s") from None
    if status:
        lines = (folder / "log.txt").read_text(errors="replace").splitlines()
        raise RunError(f"exit status {status}: {next(filter(str.strip, reversed(lines)), 'no output')}")
