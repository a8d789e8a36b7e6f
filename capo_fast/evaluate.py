"""Measures a model on benchmarks: `capo evaluate`, or `capo_fast.evaluate.run(job, ...)`.

    questions -> attempts (greedy, sampled; choices shuffled) -> answers -> checked -> results.json, results.md

The paper's protocol: greedy pass@1; multiple choice three times with shuffled choices. With `--samples k` also avg@k,
maj@k and the unbiased pass@k of k sampled answers per question.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

import capo_fast.runtime.extras  # noqa: F401  before imports whose errors would be less clear
from capo_fast.command import run_command
from capo_fast.config.paths import path_argument
from capo_fast.engine.base import Engine
from capo_fast.errors import ConfigError
from capo_fast.evaluation.command import (
    TINY,
    EvaluationFlags,
    Job,
    at_least,
    dated,
    engine_of,
    estimate,
    read_job,
    software,
    write_results,
)
from capo_fast.evaluation.compare import compare, comparison_table, read_results
from capo_fast.evaluation.questions import BENCHMARKS, Question, load_benchmarks
from capo_fast.evaluation.scores import equal_letters, macro_mean, score_benchmark
from capo_fast.evaluation.solving import WITHIN, attempt_requests, check_attempts, plan_attempts
from capo_fast.evaluation.store import Store
from capo_fast.loaders import answer_columns, start_engine
from capo_fast.markdown import markdown_table
from capo_fast.pretrained import load_tokenizer
from capo_fast.rollout.rewards import answer_pool
from capo_fast.runtime.digest import digest
from capo_fast.runtime.ranks import WHOLE_DAY_S, die_with_launcher, engine_group, ranks
from capo_fast.terminal import printable, standard_streams
from capo_fast.verify import VerifierPool

RUNS = 3
SAMPLING = ("rollout.temperature", "rollout.top_p", "rollout.top_k")
"""Settings of sampled answers."""
SETTINGS = (
    "seed",
    *SAMPLING,
    "rollout.max_tokens",
    "data.system_prompt",
    "reward.fn",
    "reward.tolerance",
    "reward.percent",
    "reward.workers",
    "engine.dtype",
    "engine.max_model_len",
    "engine.max_num_seqs",
    "engine.kv_cache_gb",
    "engine.tensor_parallel",
)


SAME_ANSWER = "capo_fast.verify.answers:same_answer"
"""Equality of wrong answers in a vote (maj@k): both are extracted answers, so neither is parsed as a solution."""


@dataclass(frozen=True)
class Protocol:
    """Numbers of answers per question."""

    samples: int = 0
    """Sampled answers per question, in addition to the greedy one."""
    runs: int = RUNS
    """Greedy answers per multiple-choice question, each with the choices in a different order."""


def run(job: Job, protocol: Protocol, engine: Engine | None = None) -> dict[str, Any]:
    """Evaluate. Every rank calls this. Returns the contents of `results.json`. `engine`: replaces vLLM."""
    with ranks(WHOLE_DAY_S):
        return evaluate(job, protocol, engine)


def evaluate(job: Job, protocol: Protocol, engine: Engine | None = None) -> dict[str, Any]:
    """`run`, inside an existing process group."""
    tokenizer = load_tokenizer(job.model)
    job = dated(job, tokenizer)
    config = job.config
    group = engine_group(config.engine.tensor_parallel)
    benchmarks = load_benchmarks(job.sets, job.data_dir, job.limit, answer_columns(config.reward))
    attempts = {
        name: plan_attempts(name, questions, protocol.runs, protocol.samples, config.seed)
        for name, questions in benchmarks.items()
    }
    everything = [attempt for mine in attempts.values() for attempt in mine]
    requests = attempt_requests(everything, tokenizer, config)
    settings = _settings(job, protocol, benchmarks) | {"requests": digest(requests)}
    with (
        Store(job.out, settings) as store,
        engine_of(engine, lambda: start_engine(job.model, config)) as start,
        answer_pool(config.reward, config.reward.fn) as pool,
        answer_pool(config.reward, WITHIN) as near,
        answer_pool(config.reward, SAME_ANSWER) as equality,
    ):
        answers = store.complete(start, requests, "evaluating", group)
        checked = check_attempts(everything, answers, pool, near, dist.get_rank(), dist.get_world_size())
        if dist.get_rank() != 0:
            return {}
        scored = {
            name: score_benchmark(questions, attempts[name], answers, checked, _equality(questions, equality))
            for name, questions in benchmarks.items()
        }
        seconds = sum(answer.seconds for answer in answers.values())
        results = {"settings": settings, "software": software(), "seconds": seconds, "benchmarks": scored}
        results |= {"mean": macro_mean(scored)}
        write_results(job.out, results, results_table(results))
        return results


def _settings(job: Job, protocol: Protocol, benchmarks: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    sampling = SAMPLING if protocol.samples else ()
    choices = any(question.choices for questions in benchmarks.values() for question in questions)
    reward = ("reward.fn", "reward.tolerance", "reward.percent")
    return {
        "command": "evaluate",
        **job.settings("rollout.max_tokens", "data.system_prompt", "data.template_kwargs", *reward, *sampling),
        "samples": protocol.samples,
        "choice_runs": protocol.runs if choices else None,
        "benchmarks": {name: f"{len(found)} questions, {digest(found)}" for name, found in benchmarks.items()},
    }


def _equality(questions: Sequence[Question], pool: VerifierPool) -> Any:
    return equal_letters if all(question.choices for question in questions) else pool.check


COUNTS = ("truncated", "timeouts", "unreadable")


def results_table(results: Mapping[str, Any]) -> str:
    """The Markdown table, with the mean over several benchmarks, and a legend."""
    benchmarks = results["benchmarks"]
    metrics = list(dict.fromkeys(name for entry in benchmarks.values() for name in entry["metrics"]))
    by_k = [name for name in metrics if name.startswith("pass@")]
    shown = [name for name in metrics if name not in by_k[1:-1]]
    rows = [_row(name, entry, entry["metrics"], shown) for name, entry in benchmarks.items()]
    if len(benchmarks) > 1:
        rows.append(_row("mean", _sum(benchmarks.values()), results["mean"], shown))
    head = ["benchmark", "problems", *shown, *COUNTS, "tokens/answer"]
    return f"{markdown_table(head, rows, padded=True)}\n{_legend(results['settings'], results['seconds'])}\n"


def _row(name: str, entry: Mapping[str, Any], metrics: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    counts = entry["counts"]
    scores = [estimate(metrics.get(metric)) for metric in shown]
    length = f"{counts['tokens'] / counts['answers']:.0f}"
    return [name, str(entry["problems"]), *scores, *(str(counts[count]) for count in COUNTS), length]


def _sum(entries: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Problems and counts summed over all benchmarks."""
    counts = {name: sum(e["counts"][name] for e in entries) for name in (*COUNTS, "tokens", "answers")}
    return {"problems": sum(entry["problems"] for entry in entries), "counts": counts}


def _legend(settings: Mapping[str, Any], seconds: float) -> str:
    lines = [f"{settings['model']}, seed {settings['seed']}, {seconds:.0f} s of sampling. pass@1 is greedy"]
    if settings["choice_runs"]:
        lines[0] += f", for multiple choice the mean of {settings['choice_runs']} runs with shuffled choices"
    if settings["samples"]:
        sampling = ", ".join(_shown(key, settings[key]) for key in SAMPLING)
        lines.append(f"avg, maj and pass@k (unbiased) are of {settings['samples']} samples at {sampling}")
    lines.append("Brackets: 95 % intervals over problems. Time-outs are excluded, unreadable answers count as wrong")
    return ".\n".join(lines) + "."


def _shown(key: str, value: float) -> str:
    """A sampling setting as text.

    >>> _shown("rollout.top_k", -1), _shown("rollout.top_p", 0.9)
    ('top-k off', 'top-p 0.9')
    """
    return f"{key.partition('.')[2].replace('_', '-')} {'off' if value == -1 else f'{value:g}'}"


def job_of(arguments: Sequence[str]) -> tuple[Job, Protocol] | None:
    """The job of a command line; None for a comparison, which is printed."""
    flags = EvaluationFlags("evaluate", "--model", "Measure a model on benchmarks, or compare two results.", SETTINGS)
    flags.add_argument("--benchmarks", help=f"files (.jsonl, .jsonl.gz, .parquet) or names: {', '.join(BENCHMARKS)}")
    flags.add_argument("--samples", type=at_least(0), default=0, metavar="K", help="for avg@K, maj@K and pass@K")
    flags.add_argument("--choice-runs", type=at_least(1), default=RUNS, metavar="N", help=f"default {RUNS}")
    flags.add_argument(
        "--compare", nargs=2, type=path_argument, metavar=("A", "B"), help="two results.json, or their folders"
    )
    options, rest = flags.parse_known_args(arguments)
    if options.compare:
        if rest:
            raise ConfigError(f"{rest[0]}: unexpected beside --compare")
        with standard_streams(output_optional=False):  # the output is the only result
            print(printable(comparison_table(compare(*map(read_results, options.compare)))))
        return None
    if options.benchmarks is None and options.model != TINY:
        raise ConfigError("--benchmarks is missing: names or files, separated by commas")
    job = read_job(options, rest, options.benchmarks or TINY, "rollout.max_tokens")
    return job, Protocol(options.samples, options.choice_runs)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""

    def work() -> None:
        found = job_of(sys.argv[1:] if argv is None else argv)
        if found is not None and (results := run(*found)):
            print(printable(f"{results_table(results)}\n{found[0].out}/results.json"))

    die_with_launcher()
    return run_command(work, output_optional=True)


if __name__ == "__main__":
    sys.exit(main())
