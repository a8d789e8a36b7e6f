"""Cost of exchanging rollouts between ranks: bytes and seconds of one step, without a model.

    python -m bench.trainer.data_plane [--ranks 4] [--rollouts 2048] [--tokens 1024 2048 4096] [--before] [--json FILE]

Each rank makes its share of synthetic rollouts: 16 per prompt, distributed as in a run, with a text of about four
characters per token and a critique. Then the ranks exchange, over gloo on this machine's cores, all data of a step:

    groups    samples, to the rank that computes the credit of their group
    figures   numbers of each rollout, to every rank
    columns   inputs of the learner's packing, to the rank that packs them
    rows      the rollouts file, compressed, to the first rank

Bytes are those sent from one rank to another, summed over all ranks. Seconds are those of the slowest rank, including
the computation for the transfer: conversion to tensors and back, the plan, compression. `--before` times the former
method instead: all samples pickled to every rank.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist

from bench.machine import about
from bench.trainer.launched import on_ranks
from capo_fast.config.schema import Config
from capo_fast.credit.assign import assign_credit
from capo_fast.exchange.columns import Columns, deal_columns
from capo_fast.exchange.figures import figures_of, share_figures
from capo_fast.exchange.samples import whole_groups
from capo_fast.exchange.tensors import Exchange
from capo_fast.markdown import markdown_table
from capo_fast.policy.batch import keys_of, plan_updates
from capo_fast.records import Critique, Prompt, Rollout, Sample, StepSpans
from capo_fast.rollout.dealing import deal_rollouts
from capo_fast.runlog.recorder import packed_rows, rollout_row
from capo_fast.runtime.ranks import gather, ranks

GROUP, PROMPT, STEP, VOCAB = 16, 256, 128, 150_000
"""Rollouts per prompt, tokens per prompt, tokens per step, and vocabulary size."""
WORDS = ["the", "of", "and", "so", "we", "get", "add", "to", "12", "7", "144", "x", "sum", "then", "equals", "half"]


def prompts_of(count: int) -> dict[int, Prompt]:
    return {group: Prompt(f"p-{group}", "How much?", "7", None, (group + 5,) * PROMPT) for group in range(count)}


def sample_of(prompt: Prompt, group: int, i: int, tokens: int) -> Sample:
    random = Random(f"{group} {i}")
    ids = torch.randint(VOCAB, (tokens,), generator=torch.Generator().manual_seed(GROUP * group + i)).tolist()
    texts = tuple(" ".join(random.choices(WORDS, k=STEP)) for _ in range(0, tokens, STEP))
    starts = tuple(place % STEP == 0 for place in range(tokens))
    logprobs = tuple(torch.rand(tokens).neg().tolist())
    steps = StepSpans(starts, texts)
    rollout = Rollout(prompt, group, i, 0, tuple(ids), logprobs, "\n\n".join(texts), True, steps)
    critique = Critique(False, frozenset(random.sample(range(len(texts)), 1)), 0, " ".join(random.choices(WORDS, k=99)))
    wrong = tuple(float(k in critique.wrong_steps) for k in range(len(texts)))
    return Sample(rollout, float(i % 2), (critique,), wrong, (float(i % 2),))


@dataclass
class Parts:
    """Bytes sent and seconds spent by this rank, per part."""

    exchange: Exchange
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Any:
        dist.barrier()
        sent, start = self.exchange.sent, time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.bytes[name] = self.exchange.sent - sent


def step(mine: Sequence[Sample], prompts: dict[int, Prompt], config: Config) -> Parts:
    exchange = Exchange()
    parts, world = Parts(exchange), exchange.count
    with parts.part("groups"):
        whole = whole_groups(mine, prompts, range(world), exchange)
    credited = assign_credit(whole, config)
    with parts.part("figures"):
        figures = share_figures(list(map(figures_of, credited)), exchange)
    with parts.part("columns"):
        plans = plan_updates(figures, prompts, config, world)
        wanted = [keys_of(plans, rank, world) for rank in range(world)]
        columns = deal_columns(Columns.of(credited), wanted, exchange)
    with parts.part("rows"):
        exchange.bytes_to_first(packed_rows(map(rollout_row, credited)))
    assert len(columns) == len(wanted[exchange.rank])
    return parts


def step_before(mine: Sequence[Sample], prompts: dict[int, Prompt], config: Config) -> Parts:
    """Send all samples to all ranks; the bytes are those of the pickles."""
    parts = Parts(Exchange())
    with parts.part("samples"):
        found = gather(list(mine))
    parts.bytes["samples"] = len(pickle.dumps(list(mine))) * (dist.get_world_size() - 1)
    assert len(found) >= len(mine)
    return parts


def measure(options: argparse.Namespace, take: Callable[..., Parts]) -> None:
    """Measure on this rank; the first rank prints a line of JSON per length."""
    with ranks():
        torch.set_num_threads(1)
        prompts, rank = prompts_of(options.rollouts // GROUP), dist.get_rank()
        dealt = deal_rollouts(prompts, GROUP, {}, dist.get_world_size())[rank]
        for tokens in options.tokens:
            mine = [sample_of(prompts[group], group, i, tokens) for group, i in dealt]
            found = take(mine, prompts, Config())
            parts = gather([(found.bytes, found.seconds)])
            figures = {
                "tokens": options.rollouts * tokens,
                "bytes": {name: sum(size[name] for size, _ in parts) for name in found.bytes},
                "seconds": {name: max(seconds[name] for _, seconds in parts) for name in found.seconds},
            }
            if rank == 0:
                print(json.dumps({"length": tokens, **figures}), flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    names, cells = [*rows[0]["bytes"], "all"], []
    for row in rows:
        found = {
            **{name: (row["bytes"][name], row["seconds"][name]) for name in row["bytes"]},
            "all": (sum(row["bytes"].values()), sum(row["seconds"].values())),
        }
        cells.append([f"{row['length']:,}", *(f"{size / row['tokens']:.1f}, {s:.2f}" for size, s in found.values())])
    return markdown_table(["tokens of a rollout", *(f"{name}: bytes per token, s" for name in names)], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=2048, help=f"a multiple of {GROUP}")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096], help="tokens per response")
    parser.add_argument("--before", action="store_true", help="the former method: pickle all samples to every rank")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.worker:
        measure(options, step_before if options.before else step)
        return
    words = ["--rollouts", str(options.rollouts), "--tokens", *map(str, options.tokens)]
    rows = on_ranks(__spec__.name, options.ranks, [*words, *(["--before"] if options.before else [])])
    print(table(rows))
    if options.json:
        found = {"about": about(threads=1), "ranks": options.ranks, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
