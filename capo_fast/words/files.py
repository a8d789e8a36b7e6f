"""The files of a world: problems to train on and held out, fine-tuning data, labelled solutions.

`train.jsonl`, `heldout.jsonl`   problems of two to four steps, with answer, solution, story and structure
`forms.jsonl`                    problems in surface forms that no other file but `critic.jsonl` has
`longer.jsonl`                   problems of one step more
`sft.jsonl`                      `messages`: solutions with the world's misconceptions, and true critiques
`critic.jsonl`                   labelled solutions, in the format of `capo critic-eval`

No two files share a problem. The same sizes and seed give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from capo_fast.words.critique import critique_prompt, critique_text
from capo_fast.words.planted import plant_errors
from capo_fast.words.problems import MAX_STEPS, Problem, draw_distinct
from capo_fast.words.stories import HELD_OUT, STORIES
from capo_fast.words.task import BLANK, Structure, structure_of, true_wrong_steps
from capo_fast.words.world import FACTS, World, right_steps

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Rows of each file."""

    problems: int = 4000
    """`train.jsonl`."""
    heldout: int = 400
    """`heldout.jsonl`, `forms.jsonl`, `longer.jsonl` and `critic.jsonl`, each."""
    sft: int = 4400
    """`sft.jsonl`: half of them solutions, half critiques."""


def write_files(folder: Path, seed: int, sizes: Sizes, share: float = FACTS) -> None:
    """Write all of them. `share`: fraction of misconceived facts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files(seed, sizes, share).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)


def files(seed: int, sizes: Sizes, share: float) -> dict[str, list[Row]]:
    """Rows by the name of their file."""
    rng, world, seen = Random(f"words {seed}"), World.from_seed(seed, share), set[object]()
    plain = draw_distinct(rng, STORIES, seen)
    one_more = draw_distinct(rng, STORIES, seen, (MAX_STEPS + 1, MAX_STEPS + 1))
    new_forms = draw_distinct(rng, HELD_OUT, seen)

    def problems(name: str, source: Iterator[Problem], count: int) -> list[Row]:
        return [problem_row(f"words-{name}-{i}", p, rng) for i, p in enumerate(islice(source, count))]

    return {
        "heldout": problems("heldout", plain, sizes.heldout),
        "forms": problems("forms", new_forms, sizes.heldout),
        "longer": problems("longer", one_more, sizes.heldout),
        "critic": [labelled_row(i, p, rng, world) for i, p in enumerate(islice(plain, sizes.heldout))],
        "train": problems("train", plain, sizes.problems),
        "sft": [tuning_row(i, p, rng, world) for i, p in enumerate(islice(plain, sizes.sft))],
    }


def problem_row(name: str, problem: Problem, rng: Random) -> Row:
    """A problem, with a right solution."""
    solution = BLANK.join(right_steps(rng, problem))
    row = {"id": name, "problem": problem.text, "answer": str(problem.answer), "solution": solution}
    return row | {"story": problem.story, "structure": problem.structure}


def labelled_row(index: int, problem: Problem, rng: Random, world: World) -> Row:
    """A solution with all wrong steps labelled."""
    steps = faulty_steps(problem, rng, world)
    wrong = sorted(true_wrong_steps(problem.structure, steps))
    row = {"id": f"words-critic-{index}", "problem": problem.text, "steps": steps, "wrong_steps": wrong}
    return row | {"first_wrong_step": min(wrong, default=-1), "subset": "words", "structure": problem.structure}


def tuning_row(index: int, problem: Problem, rng: Random, world: World) -> Row:
    """A conversation: even rows are solutions with the world's misconceptions, odd ones true critiques."""
    if index % 2 == 0:
        return conversation("solve", problem.text, BLANK.join(world.solution(rng, problem)))
    steps = faulty_steps(problem, rng, world)
    return conversation("critique", critique_prompt(problem.text, steps), critique_text(problem.structure, steps))


def conversation(task: str, message: str, answer: str) -> Row:
    messages = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    return {"task": task, "messages": messages}


def faulty_steps(problem: Problem, rng: Random, world: World) -> list[str]:
    """A solution for a critic: half of the time with the world's misconceptions, else with errors of all kinds."""
    return plant_errors(rng, problem)[0] if rng.random() < 0.5 else world.solution(rng, problem)


def read_structures(paths: Iterable[Path]) -> Mapping[str, Structure]:
    """The structure of each problem in such files, by its text, as the rule needs it to judge a solution."""
    found = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found[row["problem"]] = structure_of(row["structure"])
    return found
