"""`capo critic-eval`: scores a critic on solutions whose wrong steps are labelled.

    solutions -> critiques (k sampled, one greedy) -> votes of the first 1..k, every rule -> results.json, results.md

Prompts, sampling and parsing are exactly those of training. The critic may be any `Completer`: the command starts vLLM
in this process or (`critic.mode: server`) as a server, or uses the server at a given address.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch.distributed as dist

import capo_fast.runtime.extras  # noqa: F401  before imports whose errors would be less clear
from capo_fast.command import run_command
from capo_fast.config.critic import GateConfig
from capo_fast.config.load import by_key
from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.credit.neutralise import COMMON_SPECIAL_TOKENS
from capo_fast.engine.base import Completer
from capo_fast.engine.critic_server import ServedCritic
from capo_fast.errors import ConfigError
from capo_fast.evaluation.command import (
    TINY,
    EvaluationFlags,
    Job,
    dated,
    engine_of,
    read_job,
    software,
    write_results,
)
from capo_fast.evaluation.critic_table import results_table
from capo_fast.evaluation.critics import ANY, GREEDY, score_set
from capo_fast.evaluation.critiques import critiques_of, judged
from capo_fast.evaluation.labelled import DATA, load_solutions
from capo_fast.evaluation.store import Store
from capo_fast.loaders import (
    check_endpoint_client,
    critic_client,
    load_critic_template,
    load_critic_tokenizer,
    serve_critic,
    start_engine,
)
from capo_fast.pretrained import load_tokenizer
from capo_fast.rollout.requests import (
    critic_chat,
    special_tokens,
)
from capo_fast.runtime.digest import digest
from capo_fast.runtime.ranks import WHOLE_DAY_S, die_with_launcher, engine_group, on_first_rank, ranks
from capo_fast.terminal import printable

SETTINGS = (
    "seed",
    "critic.votes",
    "critic.voting",
    "critic.temperature",
    "critic.top_p",
    "critic.max_tokens",
    "critic.prompt",
    "critic.verdict",
    "critic.stop",
    "critic.reads",
    "critic.step.prompt",
    "critic.step.temperature",
    "critic.step.max_tokens",
    "critic.step.stop",
    "critic.step.verdict",
    "critic.mode",
    "critic.server.dtype",
    "critic.server.max_model_len",
    "critic.server.tensor_parallel",
    "engine.dtype",
    "engine.max_model_len",
    "engine.max_num_seqs",
    "engine.kv_cache_gb",
    "engine.tensor_parallel",
    "critic.template_kwargs",
    "endpoint.model",
    "endpoint.max_tokens_field",
    "endpoint.extra_body",
    "endpoint.api_key_env",
    "endpoint.concurrency",
    "endpoint.timeout_s",
    "endpoint.retries",
    "endpoint.budget_tokens",
)


DECIDING = (
    *("critic.votes", "critic.voting", "critic.temperature", "critic.top_p", "critic.max_tokens"),
    *("critic.template_kwargs", "endpoint.extra_body"),
)
"""Settings that determine the answers, besides the prompts."""
SCORING = (
    *("critic.prompt", "critic.reads", "critic.verdict", "endpoint.url"),
    *("critic.step.prompt", "critic.step.verdict", "critic.step.max_tokens"),
)
"""Further ones in the results: names of the prompts, whose texts `requests` has, and how answers are read."""
OF_A_SERVER = ("critic.mode", "critic.server.dtype", "critic.server.max_model_len")
"""Further ones if the command starts a server."""


def run(job: Job, engine: Completer | None = None) -> dict[str, Any]:
    """Score the critic. Every rank calls this. Returns the contents of `results.json`. `engine`: replaces vLLM."""
    with ranks(WHOLE_DAY_S):
        return score_critic(job, engine)


def score_critic(job: Job, engine: Completer | None = None) -> dict[str, Any]:
    """`run`, inside an existing process group."""
    tokenizer = None if is_address(job.model) else load_tokenizer(job.model)
    job = job if tokenizer is None else dated(job, tokenizer)
    config = job.config
    group = engine_group(1 if asks_server(job) else config.engine.tensor_parallel)
    sets = load_solutions(job.sets, job.data_dir, job.limit, config.seed)
    template = load_critic_template(config)
    model = on_first_rank(lambda: model_at_server(config)) if is_address(job.model) else job.model
    chat = None if asks_server(job) else critic_chat(config, tokenizer)
    known = COMMON_SPECIAL_TOKENS if tokenizer is None else special_tokens(tokenizer)
    requests = [
        r for name, solutions in sets.items() for r in critiques_of(name, solutions, chat, known, template, config)
    ]
    settings = {
        "command": "critic_eval",
        **job.settings(*DECIDING, *(OF_A_SERVER if is_served(job) else ())),
        "model": model,
        "data": {name: f"{len(solutions)} solutions, {digest(solutions)}" for name, solutions in sets.items()},
        "prompt": digest([template]),
        "requests": digest(requests),
    }
    with Store(job.out, settings) as store, engine_of(engine, lambda: start_critic(job, store)) as start:
        answers = store.complete(start, requests, "criticising", group)
        if dist.get_rank() != 0:
            return {}
        voting = ANY if config.critic.votes == 1 and config.critic.voting != GREEDY else config.critic.voting
        scored = {name: score_set(judged(name, of, answers, config), voting) for name, of in sets.items()}
        results = {
            "settings": settings | {key: by_key(config)[key] for key in SCORING},
            "software": software(),
            "benchmarks": scored,
        }
        write_results(job.out, results, results_table(results))
        return results


def is_address(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def is_served(job: Job) -> bool:
    """Whether the command starts a server for the model."""
    return job.config.critic.mode == "server" and not is_address(job.model)


def asks_server(job: Job) -> bool:
    """Whether critiques go over HTTP, as text."""
    return is_address(job.model) or is_served(job)


def model_at_server(config: Config) -> str:
    check_endpoint_client()
    from capo_fast.engine.chat import served_model  # a critic in vLLM needs no HTTP package
    from capo_fast.engine.transport import api_key

    return served_model(config.endpoint, api_key(config.endpoint))


def start_critic(job: Job, store: Store) -> Completer:
    """vLLM, or the client of a server with the budget that is left after the answers on disk."""
    if not asks_server(job):
        return start_engine(job.model, job.config)
    endpoint = replace(job.config.endpoint, on_failure="stop")  # an evaluation has no outcome credit to fall back on
    critic = replace(job.config.critic, path=job.model, gate=GateConfig())  # a run's file may have a gate
    config = replace(job.config, endpoint=endpoint, critic=critic)
    if is_served(job):
        return _served(config, store)
    return critic_client(config, store.tokens(), dist.get_world_size())


def _served(config: Config, store: Store) -> Completer:
    """Start a server on each node; returns a client of this node's. Its log is in the store's folder: only there do all
    ranks agree on a default --out."""
    check_endpoint_client()
    load_critic_tokenizer(config)
    with ExitStack() as undo:
        server = serve_critic(config, store.folder, in_turns=False)
        undo.callback(server.close)
        critic = ServedCritic(server, critic_client(config, store.tokens(), dist.get_world_size(), server))
        undo.pop_all()
    return critic


def job_of(arguments: Sequence[str]) -> Job:
    """The job of a command line. Raises ConfigError."""
    flags = EvaluationFlags(
        "critic-eval", "--critic", "Score a critic on solutions whose wrong steps are labelled.", SETTINGS
    )
    flags.epilog = (
        "--critic may also be the address of an OpenAI-compatible server. With --critic.mode server the command\n"
        f"starts one for the model, as in training.\n\n{flags.epilog}"
    )
    flags.add_argument("--data", help=f"files (.jsonl, .jsonl.gz, .parquet) or names: {', '.join(DATA)}")
    options, rest = flags.parse_known_args(arguments)
    if options.data is None and options.model != TINY:
        raise ConfigError("--data is missing: names or files, separated by commas")
    at_server = is_address(options.model)
    if at_server:
        rest = [*rest, "--critic.mode", "endpoint", "--endpoint.url", options.model]
    job = read_job(options, rest, options.data or TINY, "critic.max_tokens", at_server)
    critic = job.config.critic
    if options.model == TINY and critic.reads == "step" and critic.path is not None:
        return replace(job, model=resolve_model(critic.path))  # the tiny world's second model judges single steps
    return job


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""

    def work() -> None:
        job = job_of(sys.argv[1:] if argv is None else argv)
        if results := run(job):
            files = f"{job.out}/results.json\n{job.out}/answers-*.jsonl: every critique"
            print(printable(f"{results_table(results)}\n{files}"))

    die_with_launcher()
    return run_command(work, output_optional=True)


if __name__ == "__main__":
    sys.exit(main())
