"""Runs the commands of the examples' READMEs at small sizes, two examples at a time: the stage `examples` of .ci/run.

    python -m bench.examples --folder DIR [--only own_reward trl] [--smollm2 DIR]

Each example is copied into DIR, and the commands of its README run there with the sizes of `SIZES`; a notebook's cells
run after them. The output is in DIR/NAME.log. Exit status 1 if one fails. If the package of SmolLM2 is not installed
and cannot be installed, its example is skipped with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.real_model import unavailable
from capo_fast.runtime.ranks import free_port

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = {"--train.steps": "1", "--rollout.prompts": "2", "--rollout.n": "4", "--eval.limit": "8"}
SIZES = {
    "capo train": RUN,
    "bash start.sh": RUN,  # passes them on
    "python train.py": {"--steps": "1"},
    "python loop.py": {"--updates": "50"},
}
"""Settings that replace or extend those of a command, by the command's prefix."""
CHAT = "chat_jsonl"
LONGEST = {CHAT: {"--rollout.max_tokens": "24"}}
"""Further settings of an example's runs: its model always writes up to the limit."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the examples' copies, runs and logs")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="default: all")
    parser.add_argument("--smollm2", type=Path, help="a folder of `capo fetch smollm2`, created if missing")
    options = parser.parse_args()
    wanted = list(options.only)
    if CHAT in wanted and (reason := unavailable()):
        print(f"{CHAT}: skipped: {reason}")
        wanted.remove(CHAT)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: run(name, options.folder, options.smollm2), wanted))
    return int(not all(done))


def names() -> list[str]:
    return sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


def run(name: str, folder: Path, smollm2: Path | None) -> bool:
    """True if the example exits with 0; prints a line, and the end of its output if it fails."""
    place, log, start = folder / name, folder / f"{name}.log", time.monotonic()
    shutil.copytree(EXAMPLES / name, place, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    if name == CHAT and smollm2 is not None:
        (place / "runs").mkdir()
        (place / "runs/smollm2").symlink_to(smollm2.absolute())
    with log.open("wb") as output:
        script = "\n".join([*commands(name), *map(as_command, place.glob("*.ipynb"))])
        words = ["bash", "-euo", "pipefail", "-c", script]
        status = subprocess.run(words, cwd=place, env=environment(), stdout=output, stderr=output).returncode
    print(f"{name}: {'FAILED' if status else 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
    if status:
        print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n", flush=True)
    return status == 0


def commands(name: str) -> list[str]:
    """The README's commands at small sizes."""
    return [smaller(line, LONGEST.get(name, {})) for line in readme_commands(name)]


def readme_commands(name: str) -> list[str]:
    """Lines of the README's bash block."""
    [block] = re.findall(r"^```bash\n(.*?)^```", (EXAMPLES / name / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return block.replace("\\\n", " ").splitlines()


def smaller(line: str, more: dict[str, str]) -> str:
    """
    >>> smaller("python loop.py --updates 300 --seed 1", {})
    'python loop.py --updates 50 --seed 1'
    """
    sizes = next((sizes for begin, sizes in SIZES.items() if line.startswith(begin)), None)
    if sizes is None:
        return line
    words = shlex.split(line)
    for key, value in (sizes | (more if sizes is RUN else {})).items():
        if key in words:
            words[words.index(key) + 1] = value
        else:
            words += [key, value]
    return shlex.join(words)


def as_command(notebook: Path) -> str:
    return f"MPLBACKEND=Agg python -c {shlex.quote(code_of(notebook))}"


def code_of(notebook: Path) -> str:
    """All code cells, one after another."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def environment() -> dict[str, str]:
    """This environment's commands first on PATH, one thread each, a free port for a server."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PORT": str(free_port()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    sys.exit(main())
