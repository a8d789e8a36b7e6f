"""Problems from every kind of source, and the error lines of rows and files."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_fast.config.schema import DataConfig
from capo_fast.data import DataError, Problem, load_problems

FIELDS = DataConfig()
ROWS = [
    {"id": "a", "problem": "1+1=?", "answer": "2", "solution": "1+1=2"},
    {"id": "b", "problem": "2+2=?", "answer": "4", "solution": None},
]
PROBLEMS = [Problem("a", "1+1=?", "2", None), Problem("b", "2+2=?", "4", None)]
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl.gz"


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def written(folder: Path, content: bytes, name: str = "rows.jsonl") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- sources ---------------------------------------------------------------------------------------------------------


def write_parquet(folder: Path) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def write_dataset(folder: Path) -> str:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return str(folder / "saved")


def write_splits(folder: Path) -> str:
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(folder / "splits")
    return str(folder / "splits")


SOURCES = {
    "jsonl": lambda folder: written(folder, jsonl(ROWS)),
    "jsonl with blank lines, a byte order mark and no last newline": lambda folder: written(
        folder, b"\xef\xbb\xbf" + jsonl(ROWS).replace(b"\n", b"\r\n \n").rstrip()
    ),
    "jsonl.gz": lambda folder: written(folder, gzip.compress(jsonl(ROWS)), "rows.jsonl.gz"),
    "parquet": write_parquet,
    "saved data set": write_dataset,
    "saved splits": write_splits,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_problems(source: str, tmp_path: Path) -> None:
    path = SOURCES[source](tmp_path)
    assert load_problems(path, FIELDS) == PROBLEMS
    with_solutions = load_problems(path, replace(FIELDS, solution_field="solution"))
    assert [problem.solution for problem in with_solutions] == ["1+1=2", None]


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    path = write_splits(tmp_path)
    assert load_problems(path, replace(FIELDS, split="test")) == PROBLEMS[:1]
    assert "no split 'dev' (data.split); it has train, test" in refused(
        load_problems, path, replace(FIELDS, split="dev")
    )


def test_a_hub_data_set_is_loaded_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: str | None, split: str) -> list[Any]:
        if name == "some/where":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'some/where' doesn't exist\non the Hub")
        return ROWS if (name, config, split) == ("some/maths", "main", "train") else []

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_problems("some/maths", replace(FIELDS, name="main")) == PROBLEMS
    assert "no problems in it" in refused(load_problems, "some/maths", FIELDS)
    assert "some/where: no such file, and as a Hugging Face data set: " in refused(load_problems, "some/where", FIELDS)
    assert "no problems in it" in refused(load_problems, "some/maths", replace(FIELDS, name="main", split="test"))


def test_the_embedded_problems_load() -> None:
    held_out = load_problems("pkg://capo_fast.tiny/heldout.jsonl", FIELDS)
    train = load_problems("pkg://capo_fast.tiny/train.jsonl.gz", FIELDS)
    assert len(held_out) == 400
    assert not {p.problem for p in held_out} & {p.problem for p in train}


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared data is not here")
def test_gsm8k_loads() -> None:
    problems = load_problems(str(GSM8K), replace(FIELDS, solution_field="solution"))
    assert (len(problems), problems[0].id, problems[0].answer) == (7473, "gsm8k-train-0", "72")
    assert all(problem.solution for problem in problems)


# ---- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "text"), [(72, "72"), (0.5, "0.5"), (-3, "-3"), ("72", "72"), (" 7 ", " 7 ")])
def test_answers_become_text(answer: Any, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([{"problem": "?", "answer": answer}]))
    assert load_problems(path, FIELDS) == [Problem("0", "?", text, None)]


def test_ids_are_the_field_or_the_row_number(tmp_path: Path) -> None:
    ids = ["x", 7, None, ""]
    rows = [{"problem": "?", "answer": 1, "id": name} for name in ids] + [{"problem": "?", "answer": 1}]
    assert [p.id for p in load_problems(written(tmp_path, jsonl(rows)), FIELDS)] == ["x", "7", "2", "3", "4"]


def test_named_fields_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([{"uid": 9, "question": "?", "target": 3, "cot": "so"}]))
    fields = DataConfig(id_field="uid", prompt_field="question", answer_field="target", solution_field="cot")
    assert load_problems(path, fields) == [Problem("9", "?", "3", "so")]


GOOD = {"problem": "?", "answer": "1"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"problem": "?"}, "line 2: no field 'answer' (data.answer_field); found 'problem'"),
        ({"problem": "?", "anwser": 1}, "found 'problem', 'anwser'; did you mean anwser?"),
        ({"answer": "1"}, "line 2: no field 'problem' (data.prompt_field)"),
        ({}, "found no fields"),
        ({**GOOD, "problem": ""}, "line 2: field 'problem' (data.prompt_field) is empty"),
        ({**GOOD, "problem": 5}, "field 'problem' (data.prompt_field): found 5, wanted text"),
        ({**GOOD, "answer": " \n"}, "field 'answer' (data.answer_field) is empty"),
        ({**GOOD, "answer": None}, "found null, wanted text or a number"),
        ({**GOOD, "answer": True}, "found true, wanted text or a number"),
        ({**GOOD, "answer": ["1"]}, 'found ["1"], wanted text or a number'),
        ({**GOOD, "answer": math.nan}, "found NaN, wanted text or a number"),
        ({**GOOD, "id": ["x"]}, "field 'id' (data.id_field)"),
        ({**GOOD, "id": "0"}, "line 2: id '0' is taken by"),
        ({**GOOD, "problem": "\ud800"}, "line 2: field 'problem' (data.prompt_field) is not Unicode text"),
        ([1], "line 2: found list, wanted an object"),
        ("text", "line 2: found str, wanted an object"),
        (None, "line 2: found NoneType, wanted an object"),
    ],
)
def test_a_bad_row_is_one_line(row: Any, says: str, tmp_path: Path) -> None:
    content = "".join(json.dumps(item) + "\n" for item in (GOOD, row))
    path = written(tmp_path, content.encode())
    message = refused(load_problems, path, FIELDS)
    assert message.startswith(path) and says in message


def test_columns_that_reward_functions_name_are_kept_or_refused(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([{**GOOD, "level": 3, "x": [1]}, {**GOOD, "level": None}]))
    problems = load_problems(path, FIELDS, {"level": "reward function m:f", "x": None})
    assert [problem.columns for problem in problems] == [{"level": 3, "x": [1]}, {"level": None}]
    assert load_problems(path, FIELDS)[0].columns == {}
    message = refused(load_problems, path, FIELDS, {"levle": "reward function m:f"})
    assert "line 1: no field 'levle' (reward function m:f); found 'problem'" in message and "mean level?" in message


def test_a_named_solution_has_to_be_there(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([{**GOOD, "solution": "so"}]))
    message = refused(load_problems, path, replace(FIELDS, solution_field="solutoin"))
    assert "no field 'solutoin' (data.solution_field)" in message and "did you mean solution?" in message


# ---- files -----------------------------------------------------------------------------------------------------------

WHOLE = gzip.compress(jsonl([{"problem": f"{i}+{i * i}", "answer": i} for i in range(2000)]))
BAD_FILES = [
    ("a.jsonl", b"", "no problems in it"),
    ("a.jsonl", b"\n \n", "no problems in it"),
    ("a.jsonl", jsonl([GOOD]) + b"\n{bad\n", "a.jsonl, line 3: not JSON"),
    ("a.jsonl", jsonl([GOOD])[:-4], "a.jsonl, line 1: not JSON"),
    ("a.jsonl", jsonl([GOOD]) + b'{"problem": "\xff"}\n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON"),
    ("a.jsonl.gz", WHOLE[: len(WHOLE) // 2], "broken gzip file, "),
    ("a.jsonl.gz", jsonl([GOOD]), "broken gzip file, 0 whole lines"),
    ("a.jsonl.gz", WHOLE[:100] + b"\xff" * 100 + WHOLE[200:], "broken gzip file"),
    ("a.jsonl.gz", gzip.compress(b""), "no problems in it"),
    ("a.parquet", b"not a table", "can't read it as Parquet"),
    ("a.json", b"[]", "unknown format; wanted .jsonl, .jsonl.gz, .parquet"),
]


@pytest.mark.parametrize(("name", "content", "says"), BAD_FILES, ids=[f"{name}-{says}" for name, _, says in BAD_FILES])
def test_a_bad_file_is_one_line(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, content, name)
    message = refused(load_problems, path, FIELDS)
    assert message.startswith(path) and says in message


def test_a_cut_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    assert "can't read it as Parquet" in refused(
        load_problems, written(tmp_path, Path(path).read_bytes()[:-9], "b.parquet"), FIELDS
    )


@pytest.mark.parametrize("name", ["no.jsonl", "no.jsonl.gz", "no.parquet", "no/such/file", "./no"])
def test_a_missing_file_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        refused(load_problems, name, FIELDS).lower().replace("can't read it: ", "").startswith(f"{name}: no such file")
    )


def test_a_folder_that_holds_no_data_set_is_one_line(tmp_path: Path) -> None:
    assert "not a folder of datasets' save_to_disk" in refused(load_problems, str(tmp_path), FIELDS)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts | st.integers()), min_size=1, max_size=5), st.booleans())
def test_written_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], packed: bool) -> None:
    content = jsonl([{"problem": problem, "answer": answer} for problem, answer in rows])
    folder = tmp_path_factory.getbasetemp()
    path = written(folder, gzip.compress(content) if packed else content, "any.jsonl.gz" if packed else "any.jsonl")
    assert [(p.problem, p.answer) for p in load_problems(path, FIELDS)] == [(p, str(a)) for p, a in rows]
