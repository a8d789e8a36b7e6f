"""Step-labelled data -> how well a critic finds the wrong steps: `capo critic-eval`.

    solutions -> critiques (k sampled, one greedy) -> votes of the first 1..k, every rule -> results.json, results.md

The critic is prompted, sampled and read exactly as in training. It is scored through any `Completer`: the command
starts vLLM, or asks the server whose address it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

import capo_fast.runtime.extras  # noqa: F401  before the imports that would fail with less to say
from capo_fast.command import run_command
from capo_fast.config.schema import Config
from capo_fast.credit.critique_prompt import render_critique_prompt
from capo_fast.credit.neutralise import COMMON_SPECIAL_TOKENS
from capo_fast.credit.verdicts import VERDICTS, Parse
from capo_fast.data import ChatTemplate
from capo_fast.engine.base import Completer
from capo_fast.errors import ConfigError
from capo_fast.evaluation.command import (
    TINY,
    EvaluationFlags,
    Job,
    dated,
    engine_of,
    estimate,
    read_job,
    resumable,
    software,
    write_results,
)
from capo_fast.evaluation.critics import ANY, GREEDY, Judged, score_set, subset_mean
from capo_fast.evaluation.labelled import APART, DATA, Solution, load_solutions
from capo_fast.evaluation.store import Answer, Store
from capo_fast.loaders import check_endpoint_client, load_critic_template, start_engine
from capo_fast.markdown import markdown_table
from capo_fast.pretrained import load_tokenizer
from capo_fast.records import Critique, Request
from capo_fast.rollout.requests import critic_chat, critique_prompt_ids, critique_request, critique_room
from capo_fast.runtime.digest import digest, seed_of
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
"""Of the settings, what decides the answers beside the prompts."""


def run(job: Job, engine: Completer | None = None) -> dict[str, Any]:
    """Score the critic; every rank calls it. Returns what `results.json` holds. `engine`: one to use, not vLLM."""
    with ranks(WHOLE_DAY_S):
        return score_critic(job, engine)


def score_critic(job: Job, engine: Completer | None = None) -> dict[str, Any]:
    """The same, inside a process group that is there already."""
    at_server = is_address(job.model)
    tokenizer = None if at_server else load_tokenizer(job.model)
    job = job if tokenizer is None else dated(job, tokenizer)
    config = job.config
    group = engine_group(1 if at_server else config.engine.tensor_parallel)
    sets = load_solutions(job.sets, job.data_dir, job.limit, config.seed)
    template = load_critic_template(config)
    model = on_first_rank(lambda: model_at_server(config)) if at_server else job.model
    requests = [
        r for name, solutions in sets.items() for r in critiques_of(name, solutions, tokenizer, template, config)
    ]
    settings = {
        "command": "critic_eval",
        **job.settings(*DECIDING),
        "model": model,
        "data": {name: f"{len(solutions)} solutions, {digest(solutions)}" for name, solutions in sets.items()},
        "prompt": digest([template]),
        "requests": digest(requests),
    }
    with Store(job.out, settings) as store, engine_of(engine, lambda: start_critic(job, store.tokens())) as start:
        answers = store.complete(start, requests, "criticising", group)
        if dist.get_rank() != 0:
            return {}
        voting = ANY if config.critic.votes == 1 and config.critic.voting != GREEDY else config.critic.voting
        scored = {name: score_set(_judged(name, of, answers, config), voting) for name, of in sets.items()}
        results = {"settings": settings, "software": software(), "benchmarks": scored}
        write_results(job.out, results, results_table(results))
        return results


def is_address(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def model_at_server(config: Config) -> str:
    check_endpoint_client()
    from capo_fast.engine.chat import served_model  # a critic in vLLM needs no HTTP package

    return served_model(config.endpoint)


def start_critic(job: Job, spent_tokens: int) -> Completer:
    """vLLM, or the client of a server, which may spend what the answers on disk have left of its budget."""
    if not is_address(job.model):
        return start_engine(job.model, job.config)
    from capo_fast.engine.endpoint import EndpointCritic  # see model_at_server

    endpoint = replace(job.config.endpoint, on_failure="stop")  # an evaluation has no outcome credit to go on with
    budget = endpoint.budget_tokens
    left = None if budget is None else (budget - spent_tokens) // dist.get_world_size()
    return EndpointCritic(endpoint, left, job.config.critic.template_kwargs)


def critiques_of(
    name: str, solutions: Sequence[Solution], tokenizer: Any | None, template: str, config: Config
) -> Iterator[Request]:
    """`critic.votes` sampled critiques of each solution and a greedy one; none where the engine has no room.

    `tokenizer`: None for a server, which has its own, and so the say on what is too long.
    """
    chat = None if tokenizer is None else critic_chat(config, tokenizer)
    for i, solution in enumerate(solutions):
        prompt_ids, message = _prompt(solution, chat, template)
        if len(prompt_ids) <= critique_room(config) or tokenizer is None:
            for critique in critique_names(name, i, config):
                greedy = critique.endswith("greedy")
                seed = seed_of(config.seed, critique, solution.id)
                yield critique_request(critique, seed, prompt_ids, config, greedy, message)


def _prompt(solution: Solution, chat: ChatTemplate | None, template: str) -> tuple[tuple[int, ...], str]:
    """The critique's prompt: tokens for an engine, text for a server."""
    if chat is None:
        return (), render_critique_prompt(template, solution.problem, solution.steps, None, COMMON_SPECIAL_TOKENS)
    return critique_prompt_ids(chat, template, solution.problem, solution.steps, None), ""


def critique_names(name: str, i: int, config: Config) -> list[str]:
    """The requests for one solution: its votes, and last the greedy one."""
    return [*(f"{name}-{i}-{vote}" for vote in range(config.critic.votes)), f"{name}-{i}-greedy"]


def _judged(name: str, solutions: Sequence[Solution], answers: Mapping[str, Answer], config: Config) -> list[Judged]:
    judged, parse = [], VERDICTS[config.critic.verdict].steps
    for i, solution in enumerate(solutions):
        found = tuple(_in_room(answers.get(critique)) for critique in critique_names(name, i, config))
        *votes, greedy = (_critique(answer, len(solution.steps), parse) for answer in found)
        judged.append(Judged(solution, tuple(votes), greedy, found))
    return judged


def _critique(answer: Answer | None, steps: int, parse: Parse) -> Critique:
    if answer is None:
        return Critique(abstained=True, wrong_steps=frozenset(), dropped=0, truncated=True)
    return parse(answer.text, steps, answer.finished)


def _in_room(answer: Answer | None) -> Answer | None:
    """None where there was no room for the prompt: at a server nothing was read then, and nothing written."""
    nothing = answer is not None and not (answer.finished or answer.text or answer.prompt_tokens)
    return None if nothing else answer


def results_table(results: Mapping[str, Any]) -> str:
    """A Markdown table for each data set, by voting and by subset, and what the numbers are."""
    settings = results["settings"]
    sections = [_section(name, entry, settings) for name, entry in results["benchmarks"].items()]
    legend = (
        f"{settings['model']}, seed {settings['seed']}, votes at temperature {settings['critic.temperature']:g}, "
        f"top-p {settings['critic.top_p']:g}.\n"
        "F1 is the harmonic mean of the accuracies by first error on wrong and on right solutions (an abstention is\n"
        "neither's); precision and recall are by step, over solutions with a verdict; in brackets 95 % intervals."
    )
    return "\n".join([*sections, legend]) + "\n"


HEAD = ["voting", "votes", "F1", "on wrong", "on right", "precision", "recall", "abstained", "tokens in", "tokens out"]


def _section(name: str, entry: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    counts, agreement = entry["counts"], entry["agreement"]
    parts = [f"## {name}: {entry['problems']} solutions\n", _table(HEAD, [_row(row) for row in entry["votings"]])]
    if entry["subsets"]:
        rows = [[subset, *_row(row)[2:]] for subset, row in entry["subsets"].items()]
        row = next(iter(entry["subsets"].values()))
        parts += [f"By subset, {row['voting']}, votes: {row['votes']}.\n", _table(["subset", *HEAD[2:]], rows)]
    if (average := subset_mean(entry)) is not None:
        parts.append(f"Mean F1 of the subsets: {average:.3f}.")
    if entry["scored_apart"]:
        parts.append(f"{entry['scored_apart']} solutions in {', '.join(APART)}, where marked steps need not be false,")
        parts.append("count only in their own subsets.")
    if entry["votings"][0]["f1"] is None:
        parts.append("Recall only: without both right and wrong solutions there is no F1.")
    if agreement["step"] is not None:
        parts.append(
            f"Votes agree on {agreement['step']:.3f} of steps (Fleiss' kappa {_number(agreement['step_kappa'])}) "
            f"and on {agreement['solution']:.3f} of verdicts (kappa {_number(agreement['solution_kappa'])})."
        )
    parts.append(
        f"{counts['critiques']} critiques: {counts['abstained']} abstained ({counts['truncated']} truncated, of them "
        f"{counts['without_room']} for want of room), {counts['out_of_range']} indices out of range; "
        f"{counts['tokens_in']} tokens in, {counts['tokens_out']} out, {counts['seconds']:.1f} s.\n"
    )
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows, padded=True)


def _row(row: Mapping[str, Any]) -> list[str]:
    scores = [estimate(row[key]) for key in ("f1", "accuracy_on_wrong", "accuracy_on_right")]
    by_step = [_number(row[key]) for key in ("step_precision", "step_recall")]
    cost = [f"{row[key]:.0f}" for key in ("tokens_in", "tokens_out")]
    return [row["voting"], str(row["votes"]), *scores, *by_step, f"{row['abstained']:.1%}", *cost]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def job_of(arguments: Sequence[str]) -> Job:
    """What a command line asks for. Raises ConfigError."""
    flags = EvaluationFlags(
        "critic-eval", "--critic", "Score a critic on solutions whose wrong steps are labelled.", SETTINGS
    )
    flags.epilog = f"--critic may also be the address of an OpenAI-compatible server.\n\n{flags.epilog}"
    flags.add_argument("--data", help=f"files (.jsonl, .jsonl.gz, .parquet) or names: {', '.join(DATA)}")
    options, rest = flags.parse_known_args(arguments)
    if options.data is None and options.model != TINY:
        raise ConfigError("--data is missing: names or files, parted by commas")
    at_server = is_address(options.model)
    if at_server:
        rest = [*rest, "--critic.mode", "endpoint", "--endpoint.url", options.model]
    return read_job(options, rest, options.data or TINY, "critic.max_tokens", at_server)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 failed with one line, 2 wrong settings, 130 interrupted and saved."""

    def work() -> None:
        job = job_of(sys.argv[1:] if argv is None else argv)
        if results := run(job):
            print(printable(f"{results_table(results)}\n{job.out}/results.json"))

    die_with_launcher()
    return run_command(lambda: resumable(work), goes_on=True)


if __name__ == "__main__":
    sys.exit(main())
