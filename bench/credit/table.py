"""The tables of bench.credit, of the shards that are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.credit.arms import TRUTH
from bench.credit.scores import auc_interval, inner_auc, pooled_auc, rank_correlation, sign_agreement
from bench.credit.worlds import WORLDS, N, World
from capo_fast.evaluation.command import estimate
from capo_fast.markdown import markdown_table

Shards = Sequence[Mapping[str, Any]]
COST = ["tokens read", "cached", "written", "CPU s"]
AUC = ["AUC", "AUC within"]


def write_table(out: Path, among: Mapping[str, World] = WORLDS) -> str:
    """Write `credit.md`; the page."""
    worlds = [(world, shards) for world in among.values() if (shards := read_shards(out / world.folder))]
    formats, given = (read_shards(out / folder) for folder in ("formats", "given"))
    parts = ["# Credit against truth\n", *(world_part(*each) for each in worlds), *map(given_part, given)]
    text = "\n".join([*parts, *([LEGEND] if worlds or given else []), *map(formats_part, formats)])
    out.mkdir(parents=True, exist_ok=True)
    (out / "credit.md").write_text(text)
    return text


def read_shards(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def world_part(world: World, shards: Shards) -> str:
    labels, count = joined(shards, "labels"), len(joined(shards, "labels"))
    steps, wrong = sum(map(len, labels)), sum(map(sum, labels))
    seeds = sorted({shard["seed"] for shard in shards})
    truth = advantages_of(shards, TRUTH)
    rows = [world_row(shards, name, labels, truth) for name in world.arms if in_all(name, shards)]
    head = ["estimator", *AUC, "sign", "rank", *COST]
    return (
        f"## {world.title}: {count} rollouts, {steps} steps, {wrong} of them wrong\n\n"
        f"{world.about}. Groups of {N}, seeds {', '.join(map(str, seeds))}, {commits(shards)}, {machines(shards)}; "
        "truth is the world's rule.\n\n" + markdown_table(head, rows, right=head[1:]) + missing_arms(shards, world.arms)
    )


def commits(shards: Shards) -> str:
    """Of the code that made them; of a dirty tree it ends with a mark."""
    found = {str(shard["about"]["commit"]) for shard in shards}
    return "commit " + ", ".join(sorted(commit[:9] + commit[40:] for commit in found))


def machines(shards: Shards) -> str:
    found = {"{threads} of {cores} cores ({processor})".format(**shard["about"]) for shard in shards}
    return ", ".join(sorted(found))


def in_all(name: str, shards: Shards) -> bool:
    return all(name in shard["arms"] for shard in shards)


def missing_arms(shards: Shards, wanted: Iterable[str]) -> str:
    """A line on those that a shard lacks."""
    names = [name for name in wanted if not in_all(name, shards)]
    return f"\nNot in these shards, which are of an older commit: {', '.join(names)}.\n" if names else ""


def world_row(shards: Shards, name: str, labels: Any, truth: Any) -> list[str]:
    found = advantages_of(shards, name)
    agreement = [sign_agreement(found, truth), rank_correlation(found, truth)]
    return [name, *scores_of(found, labels, together=N), *map(shown, agreement), *costs(shards, name, len(labels))]


def given_part(shard: Mapping[str, Any]) -> str:
    labels = shard["labels"]
    rows = [
        [name, *scores_of(arm["advantages"], labels), *costs([shard], name, len(labels))]
        for name, arm in shard["arms"].items()
    ]
    head = ["estimator", *AUC, *COST]
    return (
        f"## {shard['set']}: {len(labels)} solutions\n\n{shard['model']}, seed {shard['seed']}, {commits([shard])}; "
        f"{shard['left_out']} solutions were left out (other steps, needless steps, too long, no reference).\n\n"
        + markdown_table(head, rows, right=head[1:])
    )


def formats_part(shard: Mapping[str, Any]) -> str:
    rows = [[name, *form_row(found)] for name, found in shard["forms"].items()]
    head = ["form", "F1", "precision", "recall", "abstained", *COST[:-1], "CPU ms"]
    return (
        f"## Forms of critiques: {shard['solutions']} labelled solutions of the tiny world\n\n"
        f"The shipped critics, one critique of each solution, seed {shard['seed']}, {commits([shard])}. "
        "F1 is of the first wrong step, with 95 %, precision and recall are by step, as `capo critic-eval` has them; "
        "costs are per solution.\n\n" + markdown_table(head, rows, right=head[1:])
    )


def form_row(found: Mapping[str, Any]) -> list[str]:
    scores = [estimate(found["f1"]), *(shown(found[f"step_{which}"]) for which in ("precision", "recall"))]
    tokens = [f"{found[key]:.1f}" for key in ("read", "cached", "written")]
    return [*scores, f"{found['abstained']:.1%}", *tokens, f"{1000 * found['cpu_s']:.1f}"]


def scores_of(found: Any, labels: Any, together: int = 1) -> list[str]:
    """AUC with its interval, by resampling so many rollouts together, and AUC within."""
    interval = auc_interval(found, labels, together)
    spread = "" if interval is None else " [{:.2f}, {:.2f}]".format(*interval)
    return [shown(pooled_auc(found, labels)) + spread, shown(inner_auc(found, labels))]


def joined(shards: Shards, key: str) -> list[Any]:
    return [each for shard in shards for each in shard[key]]


def advantages_of(shards: Shards, name: str) -> list[list[float]]:
    return joined([shard["arms"][name] for shard in shards], "advantages")


def costs(shards: Shards, name: str, rollouts: int) -> list[str]:
    """Per rollout."""
    arms = [shard["arms"][name] for shard in shards]
    tokens = [f"{sum(arm[key] for arm in arms) / rollouts:.1f}" for key in ("read", "cached", "written")]
    return [*tokens, f"{sum(arm['cpu_s'] for arm in arms) / rollouts:.4f}"]


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


LEGEND = """\
AUC: how often a wrong step has less advantage than a right one, ties by half, over all steps (in brackets 95 %, by
resampling groups, or given solutions), and within each rollout that has both, where a verdict on the answer says
nothing. Sign and rank: share of steps with the sign of CAPO's advantage under the rule's own critiques (0 has neither),
and Spearman's correlation with it. The oracle's AUC over all steps is below 1, because the verdict on the answer
counts in its advantage too. Costs are per rollout: tokens that the critic or the estimator reads (with those of them
in the prefix cache) and writes, and CPU seconds, with those of verifier workers. Given solutions have no group:
their advantages are of steps alone. A table is of the commit that it names: what has changed in an estimator, a prompt
or a setting since then is not in it.
"""
