"""Problems from every kind of source, and the errors of rows and files."""

import gzip
import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_tokenizer

from capo_fast.config.schema import DataConfig
from capo_fast.data import ChatTemplate, DataError, Problem, Source, build_index, open_prompts
from capo_fast.data.fields import is_seen

FIELDS = DataConfig()
TEMPLATE = ChatTemplate(byte_tokenizer())
ROWS = [
    {"id": "a", "problem": "1+1=?", "answer": "2", "solution": "1+1=2"},
    {"id": "b", "problem": "2+2=?", "answer": "4", "solution": None},
]
PROBLEMS = [Problem("a", "1+1=?", "2", None), Problem("b", "2+2=?", "4", None)]
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl.gz"


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def written(folder: Path, content: bytes, name: str = "rows.jsonl") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def load_problems(path: str, fields: DataConfig, columns: Any = None, limit: int | None = None) -> list[Problem]:
    """The problems that a run would draw, in order, before tokenisation."""
    source = Source(path, fields, TEMPLATE, 10**9, columns or {}, limit)
    with TemporaryDirectory() as folder:
        index, rows = build_index(source, Path(folder)), source.rows(Path(folder))
        prompts = open_prompts(source, Path(folder))
    problems = [source.problem(rows, int(number)) for number in index.rows]
    assert [prompt.id for prompt in prompts] == [problem.id for problem in problems]
    return problems


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


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (72, "72"),
        (72.0, "72"),
        (0.5, "0.5"),
        (-3, "-3"),
        (["72"], "72"),
        ([1, "one"], ("1", "one")),
        ("72", "72"),
        (" 7 ", " 7 "),
    ],
)
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


def test_nested_fields_are_named_with_dots(tmp_path: Path) -> None:
    """Like the data of verl."""
    message = {"role": "user", "content": "1+1"}
    row = {"prompt": [message], "reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": 7}}
    fields = DataConfig(
        id_field="extra_info.index", prompt_field="prompt", answer_field="reward_model.ground_truth", overlong="drop"
    )
    path = written(tmp_path, jsonl([row]))
    assert load_problems(path, fields) == [Problem("7", "1+1", "2", None, (("user", "1+1"),))]
    error = refused(load_problems, path, replace(fields, answer_field="reward_model.ground_truths"))
    assert "no field 'reward_model.ground_truths' (data.answer_field); found 'ground_truth', 'style' in" in error
    assert error.endswith("'reward_model'; did you mean ground_truth?")
    dotted = written(tmp_path, jsonl([{"problem": "?", "a.b": 5}]), "dotted.jsonl")
    assert load_problems(dotted, replace(FIELDS, answer_field="a.b"))[0].answer == "5"


def test_the_critic_gets_all_messages_but_the_system_s(tmp_path: Path) -> None:
    chat = [("system", "Be short."), ("user", "1+1"), ("assistant", "2"), ("user", "and 3?")]
    rows = [{"problem": [{"role": role, "content": text} for role, text in chat], "answer": 5}]
    [problem] = load_problems(written(tmp_path, jsonl(rows)), FIELDS)
    assert (problem.problem, problem.messages) == ("user: 1+1\n\nassistant: 2\n\nuser: and 3?", tuple(chat))


def test_float_ids_from_pandas_are_read_as_integers(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"id": [5.0, math.nan, None, 4.0], "problem": ["?"] * 4, "answer": [Decimal("2.50")] * 4}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    problems = load_problems(str(tmp_path / "a.parquet"), FIELDS)
    assert [(problem.id, problem.answer) for problem in problems] == [(id_, "2.50") for id_ in ("5", "1", "2", "4")]


def test_a_row_number_that_is_already_an_id_is_refused(tmp_path: Path) -> None:
    message = refused(load_problems, written(tmp_path, jsonl([{**GOOD, "id": 1}, GOOD])), FIELDS)
    assert "line 2: it has no 'id', and its number, 1, is the id of" in message and message.endswith(
        "line 1; id must be unique"
    )


def test_a_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([GOOD] * 5))
    assert [problem.id for problem in load_problems(path, FIELDS, limit=2)] == ["0", "1"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_a_file_that_changes_during_the_run_is_detected(name: str, tmp_path: Path) -> None:
    """Unpacked rows do not change; a line of a plain file is checked against its CRC."""
    if name.endswith("parquet"):
        path = write_parquet(tmp_path)
    else:
        path = written(tmp_path, gzip.compress(jsonl(ROWS)) if name.endswith(".gz") else jsonl(ROWS), name)
    source = Source(path, FIELDS, TEMPLATE, 100)
    with TemporaryDirectory() as folder:
        build_index(source, Path(folder))
        prompts = open_prompts(source, Path(folder))
    Path(path).write_bytes(Path(path).read_bytes().replace(b"2+2", b"3+3").replace(b"2", b"9"))
    if name == "rows.jsonl":
        assert "rows.jsonl, line 2: it has changed since the run started" in refused(prompts.__getitem__, 1)
    else:
        assert prompts[1].problem == "2+2=?"


GOOD = {"problem": "?", "answer": "1"}


@pytest.mark.parametrize(
    ("row", "expected"),
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
        ({**GOOD, "answer": {"a": 1}}, 'found {"a": 1}, wanted text or a number'),
        ({**GOOD, "answer": []}, "found [], wanted text or a number"),
        ({**GOOD, "answer": ["1", " "]}, "an answer of field 'answer' (data.answer_field) is empty"),
        ({**GOOD, "answer": [["1"]]}, 'found ["1"], wanted text or a number'),
        ({**GOOD, "answer": "\u200b"}, "field 'answer' (data.answer_field) is empty"),
        ({**GOOD, "answer": "\0"}, "field 'answer' (data.answer_field) is empty"),
        ({**GOOD, "problem": []}, "found an empty list, wanted messages"),
        (
            {**GOOD, "problem": [{"role": "tool", "content": "x"}]},
            "in a list, wanted a message with content and a role",
        ),
        ({**GOOD, "problem": ["x"]}, 'found "x" in a list, wanted a message'),
        ({**GOOD, "problem": [{"role": "user", "content": " "}]}, "content of a message is empty"),
        (
            {**GOOD, "problem": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "the last message has role assistant, wanted user",
        ),
        ({**GOOD, "answer": math.nan}, "found NaN, wanted text or a number"),
        ({**GOOD, "id": ["x"]}, "field 'id' (data.id_field)"),
        ({**GOOD, "id": "0"}, "line 2: id '0' is taken by"),
        ({**GOOD, "id": 0.0}, "line 2: id '0' is taken by"),
        ({**GOOD, "problem": "\ud800"}, "line 2: field 'problem' (data.prompt_field) is not Unicode text"),
        ([1], "line 2: found list, wanted an object"),
        ("text", "line 2: found str, wanted an object"),
        (None, "line 2: found NoneType, wanted an object"),
    ],
)
def test_a_bad_row_is_a_one_line_error(row: Any, expected: str, tmp_path: Path) -> None:
    content = "".join(json.dumps(item) + "\n" for item in (GOOD, row))
    path = written(tmp_path, content.encode())
    message = refused(load_problems, path, FIELDS)
    assert message.startswith(path) and expected in message


def test_columns_that_reward_functions_name_are_kept_or_refused(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([{**GOOD, "level": 3, "x": [1]}, {**GOOD, "level": None}]))
    problems = load_problems(path, FIELDS, {"level": "reward function m:f", "x": None})
    assert [problem.columns for problem in problems] == [{"level": 3, "x": [1]}, {"level": None}]
    assert load_problems(path, FIELDS)[0].columns == {}
    message = refused(load_problems, path, FIELDS, {"levle": "reward function m:f"})
    assert "line 1: no field 'levle' (reward function m:f); found 'problem'" in message and "mean level?" in message


def test_a_named_solution_must_exist(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "content", "expected"), BAD_FILES, ids=[f"{name}-{expected}" for name, _, expected in BAD_FILES]
)
def test_a_bad_file_is_a_one_line_error(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, content, name)
    message = refused(load_problems, path, FIELDS)
    assert message.startswith(path) and expected in message


def test_a_truncated_parquet_file_is_a_one_line_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    assert "can't read it as Parquet" in refused(
        load_problems, written(tmp_path, Path(path).read_bytes()[:-9], "b.parquet"), FIELDS
    )


@pytest.mark.parametrize("name", ["no.jsonl", "no.jsonl.gz", "no.parquet", "no/such/file", "./no"])
def test_a_missing_file_is_a_one_line_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        refused(load_problems, name, FIELDS).lower().replace("can't read it: ", "").startswith(f"{name}: no such file")
    )


def test_a_folder_without_a_data_set_is_a_one_line_error(tmp_path: Path) -> None:
    assert "not a folder of datasets' save_to_disk" in refused(load_problems, str(tmp_path), FIELDS)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(is_seen)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts | st.integers()), min_size=1, max_size=5), st.booleans())
def test_written_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], packed: bool) -> None:
    content = jsonl([{"problem": problem, "answer": answer} for problem, answer in rows])
    folder = tmp_path_factory.getbasetemp()
    path = written(folder, gzip.compress(content) if packed else content, "any.jsonl.gz" if packed else "any.jsonl")
    assert [(p.problem, p.answer) for p in load_problems(path, FIELDS)] == [(p, str(a)) for p, a in rows]
