"""Estimators on solutions with human step labels: those that need no group of rollouts.

The steps of a solution, without the blank lines inside them, are joined by blank lines and read by the model under test
as a rollout of its own. Left out and counted: a solution whose steps the trainer would cut in another way, one that is
too long, one of needless steps (PRMBench), and one without a reference answer or a verdict in a set that has them.
Where only the first wrong step is labelled, those after it are not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.credit.arms import ARMS
from bench.credit.crediting import Bench, credited, open_bench, write_shard
from capo_fast.config import load_config
from capo_fast.config.schema import Config
from capo_fast.credit.steps import split_steps, step_spans
from capo_fast.data import read_rows
from capo_fast.evaluation.labelled import APART, DATA, Solution, load_solutions
from capo_fast.evaluation.questions import find_file
from capo_fast.records import Prompt, Rollout, Sample
from capo_fast.rollout.requests import RequestBuilder

SETS = {"processbench": True, "prmbench": False, "mathcheck": True}
"""Whether a set has reference answers and verdicts."""
SETTINGS: Mapping[str, Any] = {
    "policy.dtype": "float32",
    "engine.dtype": "float32",
    "engine.max_model_len": 2048,
    "engine.max_num_seqs": 32,
    "engine.kv_cache_gb": 2.0,
    "critic.prompt": "pkg://capo_fast.credit/prompts/genprm.txt",
    "critic.max_tokens": 256,
    "credit.answer_lead": "The final answer is \\boxed{",
    "credit.answer_tail": "}",
    # A group of one has no advantage: what is left is the credit of steps alone.
    "credit.norm": "none",
    "credit.outcome_weight": 0,
    "credit.allow_process_dominance": "true",
}
"""On top of the embedded default; other solutions and the product's own prompt are longer."""
LONGEST = 1024
"""Tokens of a problem with its solution."""


class Labelled(NamedTuple):
    """A solution with what its row has beside its labels."""

    solution: Solution
    answer: str | None
    right: bool | None
    """Its final answer."""

    @property
    def labels(self) -> list[int | None]:
        """[S], 1 for a wrong step, 0 for a right one, None where it is not labelled."""
        first, wrong, steps = self.solution.first_wrong, self.solution.wrong_steps, range(len(self.solution.steps))
        if wrong is not None:
            return [int(k in wrong) for k in steps]
        return [int(k == first) if first < 0 or k <= first else None for k in steps]


def given_path(out: Path, name: str, seed: int) -> Path:
    return out / "given" / f"{name}-{seed}.json"


def make_given(out: Path, names: Sequence[str], model: str, data_dir: str, limit: int, seed: int) -> None:
    """The files of the sets that are not there, on one engine."""
    missing = {name: path for name in names if not (path := given_path(out, name, seed)).exists()}
    if not missing:
        return
    with open_bench(given_config({}, model, seed)) as bench:
        for name, path in missing.items():
            found = scored(bench, solutions_of(name, data_dir, limit, seed), model, seed, SETS[name])
            write_shard(path, {"set": name, "model": Path(model).name, "seed": seed, **found})
            print(path, flush=True)


def scored(bench: Bench, solutions: Sequence[Labelled], model: str, seed: int, answered: bool) -> dict[str, Any]:
    """Every arm's credit of those of the solutions that can be rollouts. answered: see SETS."""
    builder = RequestBuilder(bench.tokenizer, "", given_config({}, model, seed))
    pairs = [(each, as_sample(builder, each, place, answered)) for place, each in enumerate(solutions)]
    kept = [(each, sample) for each, sample in pairs if sample is not None]
    samples = [sample for _, sample in kept]
    if not samples:
        raise ValueError(f"{len(solutions)} solutions: found none that can be a rollout, wanted one or more")
    arms = {k: arm.settings for k, arm in ARMS.items() if arm.given and (answered or k != "answer-probability")}
    return {
        "left_out": len(solutions) - len(kept),
        "labels": [each.labels for each, _ in kept],
        "arms": {k: credited(bench, given_config(settings, model, seed), samples) for k, settings in arms.items()},
    }


def given_config(settings: Mapping[str, Any], model: str, seed: int) -> Config:
    words = {"seed": seed, "model.path": model, "data.system_prompt": "none", **SETTINGS, **settings}
    return load_config([f"--{key}={value}" for key, value in words.items()])


def solutions_of(name: str, data_dir: str, limit: int, seed: int) -> list[Labelled]:
    """So many labelled solutions. Raises ConfigError, DataError."""
    found = load_solutions([name], data_dir, limit, seed)[name]
    _, path = find_file(name, DATA, data_dir, "step-labelled data set")
    rows = {str(row.get("id")): row for _, row in read_rows(path)}
    return [Labelled(each, rows[each.id].get("answer"), rows[each.id].get("final_answer_correct")) for each in found]


def as_sample(builder: RequestBuilder, given: Labelled, place: int, answered: bool) -> Sample | None:
    """The solution as the only rollout of its prompt; None where it can't be one."""
    if given.solution.subset in APART or (answered and (given.answer is None or given.right is None)):
        return None
    solution, text = given.solution, "\n\n".join("\n".join(split_steps(each)) for each in given.solution.steps)
    ids = tuple(builder.tokenizer.encode(text, add_special_tokens=False))
    prompt_ids, steps = builder.user_prompt(solution.problem), step_spans(ids, builder.tokenizer)
    if len(steps.texts) != len(solution.steps) or len(prompt_ids) + len(ids) > LONGEST:
        return None
    prompt = Prompt(solution.id, solution.problem, given.answer or "", None, prompt_ids)
    rollout = Rollout(prompt, place, 0, 0, ids, (0.0,) * len(ids), text, True, steps)
    return Sample(rollout, float(bool(given.right)), (), (0.0,) * len(steps.texts))
