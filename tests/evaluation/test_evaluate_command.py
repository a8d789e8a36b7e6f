"""`capo_fast.evaluate` from the command line to its files, with scripted answers."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, scripted_engine

from capo_fast.errors import ConfigError, Interrupted
from capo_fast.evaluate import Protocol, job_of, main, results_table, run
from capo_fast.evaluation.compare import compare, comparison_table, read_results
from capo_fast.evaluation.questions import load_benchmarks
from capo_fast.evaluation.solving import plan_attempts
from capo_fast.records import Completion
from capo_fast.runtime.files import RecordError, json_line, lock

DATA = Path(__file__).parents[3] / "shared" / "data"


class Replies(ScriptedEngine):
    """Answers by request id and records the requests."""

    def __init__(self, reply):
        super().__init__(self.respond)
        self.reply, self.ids, self.requests = reply, [], {}

    def respond(self, request):
        self.ids.append(request.id)
        self.requests[request.id] = request
        text = self.reply(request.id)
        return Completion(request.id, (7,) * 3, (0.0,) * 3, text, not text.endswith("..."))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


QUICK = ("--reward.fn", "reward_functions:last_word")
"""A cheap reward: the verifier's worker takes seconds to start."""


def make_job(folder, benchmarks, *arguments):
    return job_of(["--benchmarks", benchmarks, "--out", str(folder), *arguments])


@pytest.fixture
def sums(tmp_path):
    rows = [{"id": f"q{i}", "problem": f"1+{i}", "answer": str(1 + i)} for i in range(4)]
    return write(tmp_path / "sums.jsonl", rows)


def test_the_tiny_world_end_to_end(tmp_path):
    results = run(*make_job(tmp_path / "a", "tiny", "--limit", "12", "--samples", "4"), scripted_engine())
    entry = results["benchmarks"]["tiny"]
    assert list(entry["metrics"]) == ["pass@1", "avg@4", "maj@4", "pass@2", "pass@4"]
    values = {name: metric["value"] for name, metric in entry["metrics"].items()}
    assert 0 < values["avg@4"] < values["pass@2"] <= values["pass@4"] <= 1
    assert entry["counts"] | {"prompt_tokens": 0, "tokens": 0} == {
        "answers": 60, "truncated": 0, "timeouts": 0, "unreadable": 0, "prompt_tokens": 0, "tokens": 0,
        "unsettled_comparisons": 0,
    }  # fmt: skip
    on_disk = json.loads((tmp_path / "a" / "results.json").read_text())
    assert on_disk["benchmarks"] == results["benchmarks"]
    assert "| tiny " in (tmp_path / "a" / "results.md").read_text()


def test_scores_by_hand(tmp_path, sums):
    """Three problems: greedy right, 2 of 3 samples right; greedy wrong, 1 of 3 right and two equal wrong ones; all
    answers cut before a box, though their last number is right."""
    texts = {
        "sums-greedy-0-0": r"\boxed{1}", "sums-greedy-1-0": r"\boxed{9}",
        "sums-sample-0-0": r"\boxed{1}", "sums-sample-0-1": r"\boxed{1.0}", "sums-sample-0-2": r"\boxed{7}",
        "sums-sample-1-0": r"\boxed{2}", "sums-sample-1-1": r"\boxed{1/2}", "sums-sample-1-2": r"\boxed{0.5}",
    }  # fmt: skip
    Path(sums).write_text("".join(Path(sums).read_text().splitlines(keepends=True)[:3]))
    job, protocol = make_job(tmp_path / "a", sums, "--samples", "3")
    engine = Replies(lambda name: texts.get(name, "1+2 is 3..."))
    entry = run(job, protocol, engine)["benchmarks"]["sums"]
    rows = {id_: {name: round(v, 4) for name, v in row.items()} for id_, row in entry["by_problem"].items()}
    assert rows == {
        "q0": {"pass@1": 1.0, "avg@3": 0.6667, "maj@3": 1.0, "pass@2": 1.0, "pass@3": 1.0},
        "q1": {"pass@1": 0.0, "avg@3": 0.3333, "maj@3": 0.0, "pass@2": 0.6667, "pass@3": 1.0},
        "q2": {"pass@1": 0.0, "avg@3": 0.0, "maj@3": 0.0, "pass@2": 0.0, "pass@3": 0.0},
    }
    assert (entry["counts"]["truncated"], entry["counts"]["unreadable"]) == (4, 4)
    assert entry["metrics"]["pass@1"]["value"] == pytest.approx(1 / 3)


def test_time_outs_are_left_out_and_counted(tmp_path, sums):
    """The reward function hangs on one answer, which then has no verdict, and its problem has no score."""
    job, protocol = make_job(tmp_path / "a", sums, *QUICK, "--reward.timeout_s", "1.0")
    texts = {"sums-greedy-0-0": "slow"}
    entry = run(job, protocol, Replies(lambda name: texts.get(name, "2")))["benchmarks"]["sums"]
    assert entry["by_problem"]["q0"] == {"pass@1": None}
    assert entry["metrics"]["pass@1"]["problems"] == 3
    assert entry["counts"]["timeouts"] == 1


def test_a_reward_reads_columns_of_the_benchmark_and_its_shares_are_not_right(tmp_path):
    rows = [
        {"id": f"q{i}", "problem": f"{i}?", "answer": "1", "level": level} for i, level in enumerate((1, 0.5, 0.75))
    ]
    rows.append({"id": "c", "problem": "?", "choices": ["1", "2"], "answer": "B"})  # not judged by the reward
    fn = ("--reward.fn", "reward_functions:by_level")
    job, protocol = make_job(tmp_path / "a", write(tmp_path / "graded.jsonl", rows), *fn)
    entry = run(job, protocol, Replies(lambda name: "none"))["benchmarks"]["graded"]
    assert [row["pass@1"] for row in entry["by_problem"].values()] == [1.0, 0.0, 0.0, 0.0]
    assert [row["reward"] for row in entry["by_problem"].values()] == [1.0, 0.5, 0.75, 0.0]
    del rows[1]["level"]
    job, protocol = make_job(tmp_path / "b", write(tmp_path / "graded.jsonl", rows), *fn)
    with pytest.raises(ConfigError, match=r"line 2: no field 'level' \(reward function .*; --reward.fn capo_fast.ver"):
        run(job, protocol, Replies(lambda name: "none"))


def test_multiple_choice_runs_three_times_in_different_orders_and_maps_back(tmp_path):
    rows = [{"id": f"c{i}", "problem": f"{i}?", "choices": ["1", "2", "3", "4"], "answer": "BD"[i]} for i in range(2)]
    path = write(tmp_path / "mc.jsonl", rows)
    questions = load_benchmarks([path], None, None)["mc"]
    attempts = {a.name: a for a in plan_attempts("mc", questions, 3, 3, seed=0)}
    assert len({a.order for a in attempts.values()}) > 6

    def choose_2(name):
        return rf"\boxed{{{'ABCD'[attempts[name].order.index(1)]}}}" if name != "mc-greedy-1-2" else "no idea"

    job, protocol = make_job(tmp_path / "a", path, *QUICK, "--samples", "3")
    results = run(job, protocol, Replies(choose_2))
    entry = results["benchmarks"]["mc"]
    assert entry["by_problem"]["c0"] == {"pass@1": 1, "avg@3": 1, "maj@3": 1, "pass@2": 1, "pass@3": 1}
    assert set(entry["by_problem"]["c1"].values()) == {0}
    assert entry["counts"]["unreadable"] == 1
    assert "3 runs with shuffled choices" in (tmp_path / "a" / "results.md").read_text()


def test_a_tolerance_and_several_answers(tmp_path):
    rows = [
        {"id": "a", "problem": "?", "answer": "4.2", "error": "1e-1"},
        {"id": "b", "problem": "?", "answer": "4.2", "error": "1e-1"},
        {"id": "c", "problem": "?", "answer": "1,2", "error": None},
        {"id": "d", "problem": "?", "answer": "4.2"},
        {"id": "e", "problem": "?", "answer": "4.2", "error": "1e-1"},
        {"id": "f", "problem": "?", "answer": "4.2", "error": "1e-1"},
        {"id": "g", "problem": "?", "answer": "4.2", "error": "1e-1"},
    ]
    too_long = rf"\boxed{{4.13{'0' * 1000}}}"
    texts = [r"\boxed{4.13\%}", r"\boxed{4.0}", r"\boxed{2, 1}", r"\boxed{4.13}", too_long, r"\boxed{3\sqrt{2}}", "?"]
    job, protocol = make_job(tmp_path / "out", write(tmp_path / "o.jsonl", rows))
    entry = run(job, protocol, Replies(lambda name: texts[int(name.split("-")[2])]))["benchmarks"]["o"]
    assert [row["pass@1"] for row in entry["by_problem"].values()] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_a_comparison_within_a_tolerance_that_times_out_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr("capo_fast.evaluate.WITHIN", "reward_functions:never")
    rows = [{"id": name, "problem": "?", "answer": "4.2", "error": 0.1} for name in "ab"]
    job, protocol = make_job(tmp_path / "out", write(tmp_path / "o.jsonl", rows), *QUICK)
    texts = ["4.2", "4.13"]
    entry = run(job, protocol, Replies(lambda name: texts[int(name.split("-")[2])]))["benchmarks"]["o"]
    assert [row["pass@1"] for row in entry["by_problem"].values()] == [1.0, None]
    assert entry["counts"]["timeouts"] == 1


def test_sampled_answers_are_drawn_as_training_draws_its_rollouts(tmp_path, sums):
    """Results with different sampling settings are not compared."""
    flags = ("--samples", "2", "--rollout.temperature", "0.6", "--rollout.top_p", "0.8")
    job, protocol = make_job(tmp_path / "a", sums, *QUICK, *flags, "--rollout.top_k", "5")
    run(job, protocol, engine := Replies(lambda name: "1"))
    drawn = {name.split("-")[1]: (r.temperature, r.top_p, r.top_k) for name, r in engine.requests.items()}
    assert drawn == {"greedy": (0.0, 1.0, -1), "sample": (0.6, 0.8, 5)}
    assert "2 samples at temperature 0.6, top-p 0.8, top-k 5." in (tmp_path / "a" / "results.md").read_text()
    run(*make_job(tmp_path / "b", sums, *QUICK, *flags), Replies(lambda name: "1"))
    with pytest.raises(ConfigError, match=r"rollout\.top_k is 5 in the first and -1 in the second"):
        compare(*map(read_results, (tmp_path / "a", tmp_path / "b")))


# ---- resuming after a kill ----


class Killed(Exception):
    pass


def test_a_killed_evaluation_resumes(tmp_path, sums):
    job, protocol = make_job(tmp_path / "a", sums, *QUICK, "--samples", "2")

    def fail_at_third(name):
        if name == "sums-greedy-2-0":
            raise Killed
        return ["1", "2", "3", "4"][len(name) % 4]

    with pytest.raises(Killed):
        run(job, protocol, first := Replies(fail_at_third))
    done = first.ids[:-1]
    file = tmp_path / "a" / "answers-0.jsonl"
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == done
    with file.open("a") as torn:
        torn.write('{"id": "sums-gre')  # the machine failed in the middle of a line
    whole = run(job, protocol, second := Replies(lambda name: ["1", "2", "3", "4"][len(name) % 4]))
    assert set(done).isdisjoint(second.ids) and len(done) + len(second.ids) == 12
    again = run(job, protocol, third := Replies(lambda name: "never requested"))
    assert third.ids == []
    assert again["benchmarks"] == whole["benchmarks"]
    fresh, _ = make_job(tmp_path / "b", sums, *QUICK, "--samples", "2")
    assert (
        run(fresh, protocol, Replies(lambda name: ["1", "2", "3", "4"][len(name) % 4]))["benchmarks"]
        == whole["benchmarks"]
    )


def test_an_interrupted_evaluation_names_its_folder(tmp_path, sums):
    """A default --out has the time in its name."""

    def interrupt(name):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=rf"every finished answer is saved; --out {tmp_path / 'a'} resumes"):
        run(*make_job(tmp_path / "a", sums, *QUICK), Replies(interrupt))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seed", "1"], "seed: 1,"),
        (["--samples", "3"], "samples: 3,"),
        (["--rollout.max_tokens", "40"], r"rollout\.max_tokens: 40,"),
        (["--data.system_prompt", "5"], r"data\.system_prompt: '5',"),
        (["--limit", "2"], "limit: 2,"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, sums, change, named):
    run(*make_job(tmp_path / "a", sums, *QUICK), Replies(lambda name: "1"))
    with pytest.raises(ConfigError, match=named):
        run(*make_job(tmp_path / "a", sums, *QUICK, *change), Replies(lambda name: "1"))


def test_other_questions_and_other_weights_are_refused(tmp_path, sums):
    import shutil

    from scripted_world import MODEL

    model = shutil.copytree(MODEL, tmp_path / "model")
    flags = ["--model", str(model), "--config", "pkg://capo_fast.configs/tiny.yaml"]
    run(*make_job(tmp_path / "a", sums, *QUICK, *flags), Replies(lambda name: "1"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"zz")
    with pytest.raises(ConfigError, match="weights: "):
        run(*make_job(tmp_path / "a", sums, *QUICK, *flags), Replies(lambda name: "1"))
    run(*make_job(tmp_path / "b", sums, *QUICK), Replies(lambda name: "1"))
    write(Path(sums), [{"id": f"q{i}", "problem": f"2+{i}", "answer": "3"} for i in range(4)])
    with pytest.raises(ConfigError, match=r"benchmarks\.sums: "):
        run(*make_job(tmp_path / "b", sums, *QUICK), Replies(lambda name: "1"))


def test_answers_without_settings_are_not_trusted(tmp_path, sums):
    run(*make_job(tmp_path / "a", sums, *QUICK), Replies(lambda name: "1"))
    (tmp_path / "a" / "settings.json").unlink()
    with pytest.raises(ConfigError, match="has answers but no settings"):
        run(*make_job(tmp_path / "a", sums, *QUICK), Replies(lambda name: "1"))


def test_damaged_settings_are_a_one_line_error_that_keeps_no_lock(tmp_path, sums):
    run(*make_job(tmp_path / "a", sums, *QUICK), Replies(lambda name: "1"))
    for text, fault in (("{", "settings.json can't be read"), ("[]", "settings.json: found list, wanted a mapping")):
        (tmp_path / "a" / "settings.json").write_text(text)
        with pytest.raises(RecordError, match=fault) as kept:  # the error's traceback keeps the store alive
            run(*make_job(tmp_path / "a", sums, *QUICK), Replies(lambda name: "1"))
        lock(tmp_path / "a").close()
        del kept


def test_progress_ends_with_the_last_answer(tmp_path, capsys):
    job, protocol = make_job(tmp_path / "a", "tiny", *QUICK, "--limit", "100")
    run(job, protocol, Replies(lambda name: "1"))
    assert capsys.readouterr().err.splitlines()[-1].startswith("evaluating: 100/100 answers, ")
    run(job, protocol, Replies(lambda name: "1"))
    assert capsys.readouterr().err == ""


def test_a_folder_has_one_writer(tmp_path, sums):
    (tmp_path / "a").mkdir()
    with lock(tmp_path / "a"), pytest.raises(RecordError, match="another process"):
        run(*make_job(tmp_path / "a", sums, *QUICK), Replies(lambda name: "1"))


# ---- several ranks ----


def on_rank(rank, port, folder):
    os.environ |= dict(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    results = run(*make_job(folder, "tiny", "--limit", "6", "--samples", "2"), scripted_engine())
    assert bool(results) == (rank == 0)


def test_two_ranks_share_the_work_and_have_the_same_results(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=on_rank, args=(rank, port, tmp_path / "two")) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    sizes = [len((tmp_path / "two" / f"answers-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert sizes == [9, 9]
    one = run(*make_job(tmp_path / "one", "tiny", "--limit", "6", "--samples", "2"), scripted_engine())
    assert read_results(tmp_path / "two")["benchmarks"] == one["benchmarks"]


# ---- two results ----


@pytest.fixture
def pair(tmp_path, sums):
    """Results of two models: the first has q0 and q1 right, the second q1, q2 and q3."""
    folders = []
    for name, right in (("a", {0, 1}), ("b", {1, 2, 3})):

        def reply(request, right=right):
            i = int(request.split("-")[2])
            return str(1 + i if i in right else 99)

        run(*make_job(tmp_path / name, sums, *QUICK), Replies(reply))
        folders.append(tmp_path / name)
    return folders  # fmt: skip


def test_two_results_are_compared_problem_by_problem(pair):
    [row] = compare(*map(read_results, pair))["rows"]
    assert (row["a"], row["b"], row["difference"], row["pairs"], row["left_out"]) == (0.5, 0.75, 0.25, 4, 0)
    assert row["p"] == 1.0  # two better, one worse
    assert row["low"] < 0.25 < row["high"]
    [mirrored] = compare(*map(read_results, pair[::-1]))["rows"]
    assert (mirrored["difference"], mirrored["low"]) == (-0.25, -row["high"])


def test_a_problem_without_a_score_in_one_result_is_left_out(pair):
    a, b = map(read_results, pair)
    b["benchmarks"]["sums"]["by_problem"]["q0"]["pass@1"] = None
    [row] = compare(a, b)["rows"]
    assert (row["a"], row["b"], row["pairs"], row["left_out"]) == (pytest.approx(1 / 3), 1.0, 3, 1)


def test_the_mean_over_benchmarks_weights_each_equally(pair):
    a, b = map(read_results, pair)
    for results, right in ((a, 0.0), (b, 1.0)):
        entry = json.loads(json.dumps(results["benchmarks"]["sums"]))
        entry["by_problem"] = {str(i): {"pass@1": right} for i in range(20)}
        results["benchmarks"]["other"] = entry
    *_, row = compare(a, b)["rows"]
    assert (row["benchmark"], row["difference"], row["pairs"]) == ("mean", 0.625, 24)
    assert row["p"] < 0.01


def test_unequal_protocols_are_refused_by_name(pair, tmp_path, sums):
    a, b = map(read_results, pair)
    b["settings"]["rollout.max_tokens"] = 1
    with pytest.raises(ConfigError, match=r"rollout\.max_tokens is 48 in the first and 1 in the second"):
        compare(a, b)
    b = read_results(pair[1])
    del b["benchmarks"]["sums"]["by_problem"]["q3"]
    with pytest.raises(ConfigError, match="sums has problem 'q3' in one of them only"):
        compare(a, b)


def test_results_of_different_days_are_compared(pair):
    """A run's settings have the date of its start, its base model's evaluation has today's."""
    a, b = map(read_results, pair)
    a["settings"]["data.date"], b["settings"]["data.date"] = "2026-11-29", "2026-11-30"
    assert compare(a, b)["rows"] == compare(*map(read_results, pair))["rows"]


def test_the_table_has_the_largest_pass_at_k_beside_a_reward_of_a_later_benchmark():
    names = {
        "choice": ["pass@1", "avg@4", "pass@2", "pass@4"],
        "graded": ["pass@1", "reward", "avg@4", "pass@2", "pass@4"],
    }
    counts = dict.fromkeys(("truncated", "timeouts", "unreadable", "tokens", "answers"), 1)
    entries = {
        name: {"problems": 1, "counts": counts, "metrics": dict.fromkeys(metrics)} for name, metrics in names.items()
    }
    settings = {"model": "m", "seed": 0, "choice_runs": None, "samples": 0}
    table = results_table({"benchmarks": entries, "mean": {}, "settings": settings, "seconds": 0.0})
    columns = [name.strip() for name in table.splitlines()[0].strip("|").split("|")]
    assert columns[2:6] == ["pass@1", "avg@4", "pass@4", "reward"]


def test_the_command_compares(pair, capsys):
    assert main(["--compare", str(pair[0]), str(pair[1] / "results.json")]) == 0
    assert "| sums      | pass@1 | 0.500 | 0.750 | +0.250 [" in capsys.readouterr().out
    assert comparison_table(compare(*map(read_results, pair)))


BAD = [
    (["--benchmarks", "math50"], "math50: unknown benchmark; did you mean math500?"),
    (["--benchmarks", "math500"], "math500: --data-dir is missing"),
    (["--benchmarks", "math500", "--data-dir", "nowhere"], "math500: nowhere has no math500"),
    (["--benchmarks", "none.jsonl"], "none.jsonl: can't read it: No such file"),
    (["--model", "some/model"], "--benchmarks is missing"),
    (["--samples", "-1"], "argument --samples: found -1, wanted 0 or more"),
    (["--benchmark", "tiny"], "benchmark: unknown setting"),
    (["--rollout.n"], "--rollout.n: needs a value"),
    (["--rollout.top_p", "2"], "rollout.top_p: found '2', wanted number > 0 and <= 1"),
    (["--compare", "nowhere", "nowhere"], "nowhere: not the results of an evaluation"),
    (["--benchmarks", ","], "no data named"),
    (["--benchmarks", "tiny,tiny"], "--benchmarks: tiny is named twice"),
]


@pytest.mark.parametrize(("arguments", "line"), BAD)
def test_wrong_settings_are_a_one_line_error(arguments, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"capo_fast: error: {line}") and error.count("\n") == 1


def test_a_run_folder_provides_its_model_and_settings(tmp_path, sums):
    import shutil

    from scripted_world import MODEL

    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text("rollout.max_tokens: 33\nengine.max_model_len: 256\n")
    with pytest.raises(ConfigError, match="has not finished yet"):
        make_job(tmp_path / "a", sums, "--model", str(run_folder))
    shutil.copytree(MODEL, run_folder / "model")
    job, _ = make_job(tmp_path / "a", sums, "--model", str(run_folder))
    assert (job.model, job.config.rollout.max_tokens) == (str(run_folder / "model"), 33)


def test_a_model_of_a_former_end_of_its_run_is_named(tmp_path, sums, capsys):
    """A run that was continued with more steps, and has not ended, has the model and summary of its former end."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    for last, note in ((4, ""), (5, f"capo_fast: note: {run}/model is of step 4, the run's last step is 5\n")):
        (run / "metrics.jsonl").write_bytes(json_line({"step": 3}) + json_line({"step": last}))
        (run / "summary.json").write_bytes(json_line({"steps": 4}))
        make_job(tmp_path / "a", sums, "--model", str(run))
        assert capsys.readouterr().err == note


KNOWN = ("math500,olympiadbench,amc23,aime24,aime25,minerva,gsm8k,arc_c,mmlu_pro,mmlu_pro_1400,mmlu_stem,commonsenseqa"
         if (DATA / "math500.jsonl").exists() else "")  # fmt: skip


@pytest.mark.skipif(not KNOWN, reason="no data beside the checkout")
def test_every_listed_benchmark_loads():
    found = load_benchmarks(KNOWN.split(","), str(DATA), None)
    assert {name: len(questions) for name, questions in found.items()} == dict(
        math500=500, olympiadbench=675, amc23=40, aime24=30, aime25=30, minerva=272, gsm8k=1319, arc_c=1172,
        mmlu_pro=12031, mmlu_pro_1400=1400, mmlu_stem=3018, commonsenseqa=1221,
    )  # fmt: skip
    assert all(bool(q.choices) == (name in ("arc_c", "mmlu_pro", "mmlu_pro_1400", "mmlu_stem", "commonsenseqa"))
               for name, questions in found.items() for q in questions)  # fmt: skip
    assert [q.tolerance for q in found["olympiadbench"] if q.tolerance] == [0.1]


def test_a_limit_draws_the_same_problems_from_the_whole_file():
    few = load_benchmarks(["tiny"], None, 50)["tiny"]
    assert load_benchmarks(["tiny"], None, 50)["tiny"] == few
    places = [int(question.id.rpartition("-")[2]) for question in few]
    assert places == sorted(set(places)) and len(places) == 50
    assert places[0] < 50 and places[-1] > 350


def test_the_default_protocol_is_the_papers():
    assert Protocol() == Protocol(samples=0, runs=3)


def test_an_evaluation_resumed_on_another_day_writes_the_date_of_its_first_start(tmp_path, sums, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ strftime_now('%d') }}+" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    words = ("--model", str(model), "--data.system_prompt", "none", "--rollout.max_tokens", "64", *QUICK)
    for day in (3, 4):
        today = SimpleNamespace(today=lambda day=day: datetime(2025, 2, day).date())
        monkeypatch.setattr("capo_fast.loaders.date", today)
        engine = Replies(lambda name: "2")
        run(*make_job(tmp_path / "a", sums, *words), engine)
        assert len(engine.ids) == (4 if day == 3 else 0)
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["data.date"] == "2025-02-03"
