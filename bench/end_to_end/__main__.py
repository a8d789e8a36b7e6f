"""A training step end to end, by stage: capo_fast's loop against TRL's, with the same model, data and settings.

    python -m bench.end_to_end [--config FILE ...] [--live SHARE ...] [--tokens N] [--out FOLDER] [settings]

    python -m bench.end_to_end                                                              the embedded default
    python -m bench.end_to_end --config bench/end_to_end/smollm2.yaml --live 1 0.5 --tokens 96 --steps 1 --out FOLDER

Settings are those of a run; TRL's arms derive theirs from them. Each arm of each round runs in its own process, a
shard. Rounds interleave the arms. With --out a finished shard is kept in FOLDER/end_to_end-NAME.json: the same command
continues with the missing shards, and --shards N stops it after N. An arm's figure in a round is the median over its
steps after the first. The first step is a warm-up and is reported separately. Tables show median, minimum and maximum
over the rounds. Ratios are to the arm `trl` in the same round, those of the whole step also to TRL's fastest arm.

    capo              capo_fast with GRPO: rollouts by vLLM, the fused CPU kernel
    capo-bf16         its policy and engine compute in bfloat16; master weights are float32
    capo-eager        its loss in plain torch (policy.loss_kernel: reference)
    capo-critic       algorithm capo: the critic reads each rollout. TRL has no critic
    trl               TRL's GRPOTrainer, all rollouts of an update in one batch, rollouts by transformers' generate
    trl-batch8        in batches of 8, TRL's own default, with gradients accumulated
    trl-bf16          bf16: true, which computes in bfloat16 by autocast
    trl-bf16-weights  the weights are bfloat16 without float32 masters: updates are rounded, unlike in the other arms
    trl+capo          trl with the loss of capo_kernels.adapters.trl

Equal: the model and its first weights, attention, prompts and their order (checked at each step), rollouts per prompt,
longest answer, temperature, reward function, updates per step, clip range, KL, gradient clip, AdamW and its rate,
threads. There is no gradient checkpointing unless the settings have it, and no evaluation and no checkpoint in a step.
The policies diverge because their random generators differ: see the tokens per response. `--tokens N` makes every
response N tokens long: the end-of-sequence token has probability 0 before. `--live SHARE` gives this share of each
step's groups mixed rewards and the others constant rewards, independent of the rollouts. The time of a learner that
skips rollouts without a gradient depends on it.

Not equal. capo_fast moves the weights into its engine and checks them there (sync). It takes each sampled token's
log-prob from the engine and compares it with the trainer's. It checks answers in a killable process, writes the step's
rollouts and metrics to disk, and trains under FSDP2 on packed rollouts. TRL generates with the trained module itself,
checks answers in its own process and writes nothing. It pads an update's rollouts into one batch, samples them from the
step's rollouts (capo_fast: whole groups), and takes the token mean over all updates of a step. A subclass times TRL's
stages. `learn` is old log-probs, loss, backward, clip and optimizer on both sides; `rest` is the remainder of a step.

Two TRL 1.16 options have no arm because they can't run on a CPU: use_vllm (vLLM 0.32 fails at the first push of
weights, which its CPU layers have packed) and use_liger_kernel (Triton layers; TRL no longer has a Liger loss).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.end_to_end.arms import ARMS, BASE, common_config
from bench.end_to_end.figures import best_of_trl, figures, page, summarise, wall
from bench.end_to_end.live import live_share
from bench.machine import about
from capo_fast.config.load import dump_config
from capo_fast.config.schema import Config
from capo_fast.errors import CapoError
from capo_fast.runtime.files import replacing

DRY = {"rollout.prompts": 2, "rollout.n": 2, "rollout.max_tokens": 8, "train.minibatches": 1}


@dataclass(frozen=True)
class Case:
    """Inputs of all arms, and the file of their figures."""

    config: Config
    live: float | None
    tokens: int | None
    threads: int
    file: Path | None

    def work(self) -> dict[str, Any]:
        rollout, train = self.config.rollout, self.config.train
        return {
            "model": shown_path(self.config.model.path),
            "data": shown_path(self.config.data.path or ""),
            "prompts": rollout.prompts,
            "n": rollout.n,
            "max_tokens": rollout.max_tokens,
            "updates": train.epochs * train.minibatches,
            "steps": train.steps - 1,
            "live": self.live,
            "tokens": self.tokens,
        }


def shown_path(path: str) -> str:
    """A hub id or a path inside the project unchanged; the last part of any other path."""
    return Path(path).name if path.startswith(("/", "..", "~")) else path


def run_shard(name: str, case: Case) -> dict[str, Any]:
    """Run one process of an arm. Exits the command if the arm fails or did other work than the rest."""
    arm = ARMS[name]
    environment = os.environ | {"OMP_NUM_THREADS": str(case.threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        file = write_settings(name, case, Path(folder))
        fixed = [] if case.tokens is None else ["--fixed"]
        command = [sys.executable, "-m", arm.module, folder, *fixed, *arm.words, "--config", str(file)]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{name}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
        found = json.loads(Path(folder, "arm.json").read_text())
    check_work(name, found, case.tokens)
    return found | {"outside": seconds - sum(map(wall, found["steps"]))}


def check_work(name: str, found: Mapping[str, Any], tokens: int | None) -> None:
    """Exits the command unless each response has `tokens` tokens: arms would be compared on unequal work."""
    for step in found["steps"]:
        if tokens is not None and step["tokens"] != step["rollouts"] * tokens:
            sys.exit(f"{name}: found {step['tokens']} tokens, wanted {step['rollouts']} rollouts of {tokens}")


def write_settings(name: str, case: Case, folder: Path) -> Path:
    """Write the arm's whole configuration to a file; returns its path."""
    common = folder / "common.yaml"
    common.write_text(dump_config(case.config))
    own = live_share(case.config, case.live, folder) if case.live is not None else {}
    file = folder / "config.yaml"
    file.write_text(dump_config(common_config(["--config", str(common)], own, ARMS[name].settings)))
    return file


def kept(case: Case, names: list[str]) -> dict[str, list[Any]]:
    """Existing rounds of each arm. Exits the command if they are of other work."""
    if case.file is None or not case.file.exists():
        return {name: [] for name in names}
    found, now = json.loads(case.file.read_text()), about(case.threads) | {"work": case.work()}
    for key in ("work", "processor", "cores", "threads", "versions", "python", "commit"):
        was, is_now = (str(each[key]).removesuffix("-dirty") for each in (found, now))
        if was != is_now:
            sys.exit(f"{case.file}: {key}: found {was}, wanted {is_now}: its shards are of another measurement")
    return {name: found["rounds"].get(name, []) for name in [*names, *(found["rounds"].keys() - set(names))]}


def missing(rounds: Mapping[str, list[Any]], names: list[str], count: int) -> Iterator[tuple[int, str]]:
    """Missing shards, round by round; each round starts with another arm."""
    for number in range(count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if len(rounds[name]) == number:
                yield number, name


def measure(case: Case, options: argparse.Namespace, left: int) -> int:
    """Run at most `left` shards of a case; returns how many are left after them."""
    rounds = kept(case, options.arms)
    for number, name in missing(rounds, options.arms, options.rounds):
        if left == 0:
            break
        rounds[name].append(run_shard(name, case))
        step = figures(rounds[name][-1])["step, ms"]
        print(f"round {number + 1} of {options.rounds}, {name}: {step:.0f} ms per step", file=sys.stderr, flush=True)
        write(case, rounds)
        left -= 1
    if all(rounds.values()):
        print("\n".join(page(result(case, rounds))))
    return left


def result(case: Case, rounds: Mapping[str, list[Any]]) -> dict[str, Any]:
    words = [shown_path(word) for given in sys.argv[1:] for word in given.split("=", 1)]
    command = shlex.join(["python", "-m", "bench.end_to_end", *words])
    found = {**about(case.threads), "command": command, "work": case.work(), "rounds": rounds}
    if not all(rounds.values()):
        return found
    by_figure = {name: [figures(each) for each in some] for name, some in rounds.items()}
    return found | {"best": best_of_trl(by_figure), "summary": summarise(rounds)}


def write(case: Case, rounds: Mapping[str, list[Any]]) -> None:
    """Write the figures as JSON and, once every arm has a round, the page."""
    if case.file is None:
        return
    found = result(case, rounds)
    case.file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(case.file) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())
    if "summary" in found:
        case.file.with_suffix(".md").write_text("\n".join(page(found)) + "\n")


def cases(options: argparse.Namespace, words: list[str]) -> Iterator[Case]:
    """A case per share of live groups, or one with the run's own reward."""
    own: dict[str, Any] = {"train.steps": options.steps + 1}
    own |= DRY if options.dry else {}
    own |= {} if options.tokens is None else {"rollout.max_tokens": options.tokens}
    files = [word for file in options.config for word in ("--config", file)]
    config = common_config([*files, *words], own)
    name = Path(options.config[-1]).stem if options.config else "tiny"
    for live in options.live or [None]:
        stem = f"end_to_end-{name}" if live is None else f"end_to_end-{name}-live{100 * live:.0f}"
        file = options.out / f"{stem}.json" if options.out else None
        yield Case(config, live, options.tokens, options.threads, file)


def parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "python -m bench.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], help="a file of a run's settings (tiny.yaml)")
    parser.add_argument("--live", type=float, nargs="+", help="shares of groups with a gradient, a table per share")
    parser.add_argument("--tokens", type=int, help="tokens of every response")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of an arm per round, after the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["capo", BASE], help=f"{BASE} is always included")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch threads, in every arm")
    parser.add_argument("--out", type=Path, help="folder of the figures, as JSON and a page; shards in it are kept")
    parser.add_argument("--shards", type=int, default=-1, help="stop after this many shards; default: all")
    parser.add_argument("--dry", action="store_true", help="one step of one round at a small size, as a smoke test")
    options, words = parser.parse_known_args()
    if min(options.steps, options.rounds, options.threads) < 1:
        parser.error("--steps, --rounds, --threads: wanted at least 1")
    if any(not 0 <= live <= 1 for live in options.live or []):
        parser.error("--live: wanted shares from 0 to 1")
    options.arms = [name for name in ARMS if name in (BASE, *options.arms)]
    if options.dry:
        options.steps = options.rounds = 1
    return options, words


def main() -> None:
    options, words = parsed()
    left = options.shards
    try:
        for case in cases(options, words):
            left = measure(case, options, left)
    except CapoError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    # On this exception subprocess kills the running arm, which would disturb the next measurement.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command continues"))
    main()
