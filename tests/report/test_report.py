"""The report: a run's data on the page, the draw of its rollouts, and the page in a real browser."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_runs import HOSTILE, all_kinds, critique, make_run, row
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from capo_fast.report.__main__ import main
from capo_fast.report.credit_map import SHARES, Pool, Room, draw, entry, kind, read_credit_map
from capo_fast.report.html import advantage_scale, embedded
from capo_fast.report.runs import load_runs, unique_names

ASSETS = Path(__file__).parents[2] / "capo_fast" / "report" / "assets"
ROOMY = Room(10_000, 10_000_000)


def report(*runs: Path, out: Path) -> str:
    """The page's text, without Bokeh's scripts."""
    assert main([*map(str, runs), "--out", str(out)]) == 0
    text, scripts = re.subn(
        r"<script>'use strict';\s/\*!.*?</script>", "", out.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert scripts == 2
    return text


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_the_summary_of_a_former_end_is_not_the_result_of_a_continued_run(tmp_path):
    ended, continued = (make_run(tmp_path / name) for name in ("ended", "continued"))
    summary = json.loads((continued / "summary.json").read_text()) | {"steps": 3}
    (continued / "summary.json").write_text(json.dumps(summary))
    page = report(ended, continued, out=tmp_path / "page.html")
    rows = [
        re.findall(r"<td[^>]*>([^<]*)</td>", row)[-4:] for row in re.findall(r"<tr><td><button.*?</tr>", page, re.S)
    ]
    assert rows[0] == ["0.250 ± 0.125", "0.750", "0:01:01", "finished"]
    assert rows[1] == ["0.250 ± 0.125", "–", "0:00:09", "not finished"]


def test_names_are_as_short_as_possible():
    assert unique_names([Path("/r/a/capo"), Path("/r/b/capo"), Path("/r/b/grpo")]) == ["a/capo", "b/capo", "grpo"]
    assert unique_names([Path("/capo"), Path("/x/capo")]) == ["//capo", "x/capo"]


@pytest.mark.parametrize(
    ("damage", "message_part"),
    [
        (lambda run: shutil.rmtree(run), "is not the folder of a run: no such folder"),
        (lambda run: (run / "metrics.jsonl").unlink(), "is not the folder of a run: it has no metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text("{oh\n"), "metrics.jsonl, line 1, is not JSON"),
        (lambda run: (run / "config.yaml").write_text("a: [1\nb: }"), "config.yaml can't be read: while parsing"),
        (lambda run: (run / "config.yaml").write_text("[" * 9999), "config.yaml can't be read: "),
        (lambda run: (run / "summary.json").write_text("[]"), "summary.json: found list, wanted a mapping"),
        (
            lambda run: (run / "summary.json").write_text('{"steps": "4"}'),
            "summary.json: steps: found '4', wanted a num",
        ),
        (lambda run: (run / "rollouts/000002.jsonl.gz").write_bytes(gzip.compress(b"7")), "not a rollout: TypeError("),
        (
            lambda run: (run / "rollouts/000002.jsonl.gz").write_bytes(gzip.compress(b'{"steps": []}')),
            "000002.jsonl.gz is damaged: a row is not a rollout: KeyError(",
        ),
        (lambda run: (run / "rollouts/000002.jsonl.gz").write_bytes(b"\x1f\x8b torn"), "000002.jsonl.gz is damaged: "),
        (
            lambda run: (run / "rollouts/000002.jsonl.gz").write_bytes(gzip.compress(b"{")),
            "000002.jsonl.gz is damaged: ",
        ),
    ],
)
def test_unreadable_files_are_a_one_line_error(tmp_path, capsys, damage, message_part):
    run = make_run(tmp_path / "run", rows=all_kinds())
    damage(run)
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 1
    line = capsys.readouterr().err
    assert re.fullmatch(rf"capo_fast: error: .*{re.escape(message_part)}.*\n", line), line
    assert not (tmp_path / "page.html").exists()


def test_a_run_named_twice_is_a_one_line_error(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main([str(run), str(tmp_path / "x" / ".." / "run")]) == 1
    assert "named twice" in capsys.readouterr().err


# ---- the choice of rollouts ------------------------------------------------------------------------------------------


def test_kinds():
    assert [kind(each["outcome"], each["votes"], each["critiques"]) for each in all_kinds()] == [
        "right-sound", "wrong-sound", "right-flagged", "wrong-flagged", "right", "wrong", "unchecked",
    ]  # fmt: skip
    assert kind(1.0, [0.25, 0.5], [{"abstained": False}]) == "right-flagged"
    assert kind(0.9, [0.49], [{"abstained": False}, {"abstained": True}]) == "wrong-sound"


def test_an_entry_counts_the_tokens_of_each_step():
    each = row(0, 1.0, (0, 1), (0.123456, -1.0), [critique(1)])
    each["step_starts"] = [True, False, False, False, True]
    found = entry(each, 9, "right-flagged")
    assert (found["tokens"], found["advantages"], found["step"]) == ([4, 1], [0.1235, -1.0], 9)


def test_an_entry_has_the_extracted_answer_or_none_for_an_older_run():
    each = row(0, 1.0, (0,), (0.5,), [critique(1)])
    assert entry(each | {"extracted": "7"}, 9, "right-flagged")["extracted"] == "7"
    del each["extracted"]
    assert entry(each, 9, "right-flagged")["extracted"] is None


sizes = st.lists(st.integers(1, 60), max_size=40)


@given(sizes, st.integers(1, 12), st.integers(1, 400), st.randoms(use_true_random=False))
def test_a_pool_keeps_the_first_that_fit_in_any_order_of_arrival(sizes, count, room, random):
    entries = [("x" * size, order) for order, size in enumerate(sizes)]
    expected, used = [], 0
    for text, _ in entries[:count]:
        used += len(json.dumps(text)) + 2
        if used > room:
            break
        expected.append(text)
    pool = Pool(Room(count, room))
    random.shuffle(entries)
    for text, order in entries:
        pool.add((order,), text)
    assert [text for _, text in pool.in_order()] == expected


@given(st.tuples(sizes, sizes, sizes), st.integers(1, 60), st.integers(20, 2000))
def test_a_draw_fills_the_room_and_never_more(pools, count, bytes_):
    room = Room(count, bytes_)
    filled = {}
    for (name, _), sizes in zip(SHARES.items(), pools, strict=True):
        filled[name] = Pool(room)
        for order, size in enumerate(sizes):
            filled[name].add((order,), f"{name}-{order}-" + "x" * size)
    drawn = draw(filled, room)
    used = sum(len(json.dumps(text)) + 2 for text in drawn)
    assert len(set(drawn)) == len(drawn) <= count
    assert used <= bytes_
    everything = [text for pool in filled.values() for _, text in pool.in_order()]
    left = sorted(len(json.dumps(text)) + 2 for text in set(everything) - set(drawn))
    assert not left or len(drawn) == count or used + left[-1] > bytes_


def test_half_the_room_is_for_disagreement_and_the_seed_determines_the_choice(tmp_path):
    rows = [row(i, i % 2, (0, i % 3 == 0), (0.1, 0.2), [critique()], group=i // 8) for i in range(40)]
    run = load_runs([make_run(tmp_path / "run", steps=5, rows=rows)])[0]
    room = Room(40, 10_000_000)
    found = read_credit_map(run.rollout_files(), room, seed=0)
    assert (found.total, len(found.shown)) == (200, 40)
    kinds = Counter(each["kind"] for each in found.shown)
    assert kinds["right-flagged"] == 20, "half of the room, of 35"
    quiet = [each for each in found.shown if each["kind"] != "right-flagged"]
    assert sum(each["step"] in (1, 5) for each in quiet) == 10
    assert {each["group_size"] for each in found.shown} == {8}
    assert {each["group_right"] for each in found.shown} == {4}
    assert found.shown == read_credit_map(run.rollout_files(), room, seed=0).shown
    assert found.shown != read_credit_map(run.rollout_files(), room, seed=1).shown


def test_the_page_states_the_shown_rollouts_and_the_rule(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", rows=all_kinds())
    everything = report(run, out=tmp_path / "page.html")
    assert "28 of 28 rollouts on disk (steps 1 to 4) are shown." in everything
    assert "Half of the room" not in everything
    monkeypatch.setattr("capo_fast.report.__main__.ROLLOUTS", 10)
    some = report(run, out=tmp_path / "page.html")
    assert "10 of 28 rollouts on disk (steps 1 to 4) are shown." in some
    assert "A run has room for 10 rollouts and 10.0 MB here. Half of the room goes to rollouts" in some
    assert len(data_of(some)["rollouts"]) == 10


def test_rollouts_of_an_older_version_are_counted(tmp_path):
    old = [{key: value for key, value in each.items() if key != "steps"} for each in all_kinds()]
    text = report(make_run(tmp_path / "run", rows=[*old, *all_kinds()]), out=tmp_path / "page.html")
    assert "28 of 56 rollouts on disk (steps 1 to 4) are shown. 28 lack the texts of their steps" in text


# ---- the contents of the page ----------------------------------------------------------------------------------------


def test_missing_measurements_are_listed_and_not_shown_as_0(tmp_path):
    run = make_run(tmp_path / "run", algorithm="grpo", finished=False)
    text = report(run, out=tmp_path / "page.html")
    titles = re.findall(r"<figcaption><b>(.*?)</b>", text)
    assert "Pass rate of rollouts" in titles
    assert "Stage times, run" in titles
    assert not {"pass@1, held out", "KL to the reference", "Learning rate"} & set(titles)
    assert "Steps voted wrong" not in text, "no step was judged, so the rate of 0 in the metrics is no measurement"
    assert "KL to the reference" in re.search(r"Not measured: (.*?)</p>", text[text.index('id="policy"') :])[1]
    assert "The same throughout: Learning rate 1e-05." in text
    assert "not finished" in text


def test_a_run_without_a_step_has_a_page(tmp_path):
    text = report(make_run(tmp_path / "run", steps=0, finished=False), out=tmp_path / "page.html")
    assert "No step is finished yet" in text
    assert "no rollouts on disk" in text


def test_two_runs_on_one_page(tmp_path):
    capo = make_run(tmp_path / "a" / "run", rows=all_kinds())
    grpo = make_run(tmp_path / "b" / "run", algorithm="grpo", rows=[row(0, 1.0, (0,), (0.5,), [])])
    text = report(capo, grpo, out=tmp_path / "page.html")
    data = data_of(text)
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"]
    assert data["runs"][0]["clock"] == {"0": 0.0, "1": 1.5, "2": 3.5, "3": 6.0, "4": 9.0}
    colours = {(s["name"], s["colour"]) for chart in data["charts"] for s in chart["series"] if chart["top"] is None}
    assert {name for name, _ in colours} >= {"a/run", "b/run"}
    assert len({colour for name, colour in colours if name == "a/run"}) == 1
    differing = re.search(r"<th>Differs</th>.*?</table>", text, re.DOTALL)[0]
    assert re.findall(r"<code>(.*?)</code>", differing) == ["algorithm"]
    evaluation = next(chart for chart in data["charts"] if chart["series"][0]["y"] == [0.25])
    assert evaluation["series"][0]["x"] == [0], "only the summary has the evaluation before training"
    assert report(capo, grpo, out=tmp_path / "again.html") == text


def test_the_colour_scale_covers_nearly_all_advantages():
    shown = [{"advantages": [0.1, -1.0, None]}] * 98 + [{"advantages": [50.0]}]
    assert advantage_scale(shown) == 1.0
    assert advantage_scale([{"advantages": [0.0]}]) == 0.1
    assert advantage_scale([]) == 1.0


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5))
def test_data_can_not_end_its_script_element(value):
    assert json.loads(embedded(value)) == value
    assert "<" not in embedded(value)
    assert embedded(value).isascii()


def test_the_scripts_insert_no_data_as_markup():
    sources = "".join(path.read_text() for path in ASSETS.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", sources)


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("the report's page is tested in Chromium: make chromium, or as root apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """URL of a page with two runs, one of them with a hostile name and hostile texts."""
    folder = tmp_path_factory.mktemp("page")
    hostile = make_run(folder / "<img src=x onerror=pwned=1> 100%#é", rows=all_kinds(HOSTILE))
    plain = make_run(folder / "grpo", algorithm="grpo", rows=[row(0, 1.0, (0,), (0.5,), [])])
    assert main([str(hostile), str(plain), "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").as_uri()


@contextmanager
def window(browser: Browser, address: str, **kind: Any) -> Iterator[Page]:
    """The page in a new window. At the end, fails on any network request, console message or page error."""
    events: list[str] = []
    with browser.new_context(color_scheme="light", reduced_motion="reduce", **kind) as context:
        page = context.new_page()
        page.route("**", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.on(
            "request",
            lambda r: events.append(r.url) if r.url.split("#")[0] != address and r.url[:5] != "data:" else None,
        )
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.goto(address)
        yield page
        assert page.evaluate("window.pwned") is None
    assert events == []


@pytest.fixture
def opened(browser, address) -> Iterator[Page]:
    with window(browser, address, viewport={"width": 1280, "height": 900}) as page:
        yield page


def listed(page: Page) -> list[tuple[int, int, int]]:
    """(run, step, sample) of the items in the list, in order."""
    return [tuple(each) for each in page.evaluate("rows.map((r) => [r.run, r.step, r.sample])")]


def first_kinds(page: Page, count: int) -> list[str]:
    return page.locator("#list .item .kind").all_text_contents()[:count]


DRAWN = """(figure) => {
    const { model } = Bokeh.index.roots.find((view) => figure.contains(view.el));
    const drawn = (type, read) => model.renderers.filter((each) => each.visible && each.glyph.type === type).map(read);
    return {
        lines: drawn("Line", ({ glyph, data_source: { data } }) =>
            [glyph.line_color.value, data.x, data[glyph.y.field]]),
        errors: drawn("Segment", ({ data_source: { data } }) => [data.low, data.high]),
        bars: drawn("VBar", ({ data_source: { data } }) => [data.bottom, data.top]),
        x: [model.x_range.start, model.x_range.end],
        top: model.y_range.end,
    };
}"""
PIXELS = """(figure) => {
    const { canvas } = Bokeh.index.roots.find((view) => figure.contains(view.el)).canvas_view.primary;
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    const colours = new Set();
    for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) colours.add(data.slice(at, at + 3).join());
    return [...colours];
}"""
TOUCH = """(figure) => getComputedStyle(
    Bokeh.index.roots.find((view) => figure.contains(view.el)).canvas_view.events_el).touchAction"""
BLUE, ORANGE = "59,130,196", "221,122,47"
LIGHT_GRID, DARK_GRID = "223,227,233", "44,51,61"


def chart(page: Page, title: str) -> Locator:
    """The figure of a chart, after scrolling to it and drawing it."""
    found = page.locator("figure", has=page.get_by_text(title, exact=True))
    found.scroll_into_view_if_needed()
    expect(found.locator(".bk-Figure")).to_be_visible()
    return found


def until(figure: Locator, function: str, condition: str) -> None:
    """Wait for the condition: charts are painted in the next frame."""
    figure.page.wait_for_function(
        f"(figure) => {{ const found = ({function})(figure); return {condition}; }}", arg=figure.element_handle()
    )


def zoom(figure: Locator, left: int, right: int) -> None:
    """Drag from right to left."""
    figure.locator(".plot").hover(position={"x": right, "y": 90})
    figure.page.mouse.down()
    figure.locator(".plot").hover(position={"x": left, "y": 90})
    figure.page.mouse.up()


def test_charts_follow_axis_smoothing_runs_and_theme(opened):
    evaluation = chart(opened, "pass@1, held out").evaluate(DRAWN)
    assert evaluation["lines"] == [["#3b82c4", [0], [0.25]], ["#dd7a2f", [0], [0.25]]]
    assert evaluation["errors"] == [[[0.125], [0.375]]] * 2
    rate = chart(opened, "Pass rate of rollouts")
    until(rate, PIXELS, f"found.includes('{ORANGE}') && found.includes('{LIGHT_GRID}')")
    opened.select_option("#axis", "time")
    assert [x for _, x, _ in rate.evaluate(DRAWN)["lines"]] == [[1.5, 3.5, 6, 9]] * 2
    until(rate, DRAWN, "found.x[0] > 1 && found.x[1] > 9")
    opened.select_option("#smooth", "5")
    ends = [y[3] for _, _, y in rate.evaluate(DRAWN)["lines"]]
    assert ends == pytest.approx([0.8, 0.5, 0.8, 0.5]), "raw values, drawn pale, and means"
    opened.get_by_role("button", name="grpo").click()
    assert {colour for colour, _, _ in rate.evaluate(DRAWN)["lines"]} == {"#3b82c4"}
    until(rate, PIXELS, f"found.includes('{BLUE}') && !found.includes('{ORANGE}')")
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.get_by_role("button", name="Dark").click()
    until(rate, PIXELS, f"found.includes('{DARK_GRID}') && !found.includes('{LIGHT_GRID}')")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    opened.keyboard.press("t")
    until(rate, PIXELS, f"found.includes('{LIGHT_GRID}')")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    opened.emulate_media(color_scheme="dark")
    expect(opened.get_by_role("button", name="Light")).to_be_visible()
    opened.get_by_role("button", name="<img").click()
    assert rate.evaluate(DRAWN)["lines"] == []
    rate.locator(".plot").hover(position={"x": 200, "y": 90})
    until(rate, DRAWN, "isNaN(found.x[0])")
    rate.locator(".plot").hover(position={"x": 220, "y": 90})
    expect(rate.locator(".readout")).to_be_hidden()


def test_stage_times_are_stacked_on_one_scale(opened):
    stages = chart(opened, "Stage times, grpo")
    until(stages, PIXELS, f"found.includes('{BLUE}')")
    assert stages.evaluate(DRAWN)["bars"] == [[[0] * 4, [1] * 4], [[1] * 4, [1.5, 2, 2.5, 3]]]
    assert (
        stages.evaluate(DRAWN)["top"]
        == chart(opened, "Stage times, <img src=x onerror=pwned=1> 100%#é").evaluate(DRAWN)["top"]
    )
    stages.locator(".plot").hover(position={"x": 360, "y": 90})
    expect(stages.locator(".readout:visible")).to_have_text("step 4rollout1learn2")


def test_a_bar_of_several_steps_names_them(browser, tmp_path):
    run = make_run(tmp_path / "long", steps=203)
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    with window(browser, (tmp_path / "page.html").as_uri(), viewport={"width": 1280, "height": 900}) as page:
        stages = chart(page, "Stage times, long")
        until(stages, PIXELS, f"found.includes('{BLUE}')")
        for x, steps in ((50, "steps 1 to 3"), (375, "steps 202 to 203")):  # the nearest bar
            stages.locator(".plot").hover(position={"x": x, "y": 90})
            expect(stages.locator(".readout:visible p")).to_have_text(steps)


def test_the_mouse_shows_the_values_of_all_lines_and_zooms(opened):
    rate = chart(opened, "Pass rate of rollouts")
    until(rate, PIXELS, "found.length > 0")
    start, end = rate.evaluate(DRAWN)["x"]
    rate.locator(".plot").hover(position={"x": 130, "y": 90})
    name = "<img src=x onerror=pwned=1> 100%#é"
    expect(rate.locator(".readout:visible")).to_have_text(f"step 2{name}0.4grpo0.4")
    opened.get_by_role("button", name="grpo").click()
    rate.locator(".plot").hover(position={"x": 360, "y": 90})
    expect(rate.locator(".readout:visible")).to_have_text(f"step 4{name}0.8")
    zoom(rate, 250, 360)
    until(rate, DRAWN, f"found.x[0] > {start}")
    zoom(rate, 150, 250)
    until(rate, DRAWN, f"found.x[0] > {start} + 1")
    rate.locator(".plot").dblclick(position={"x": 200, "y": 90})
    until(rate, DRAWN, f"found.x[0] === {start} && found.x[1] === {end}")
    zoom(rate, 250, 360)
    opened.select_option("#axis", "time")
    until(rate, DRAWN, "found.x[0] < 1.5 && found.x[1] > 9")
    rate.locator(".plot").hover(position={"x": 360, "y": 90})
    expect(rate.locator(".readout:visible")).to_contain_text("9.0 s")
    opened.locator("h1").hover()
    expect(rate.locator(".readout")).to_be_hidden()
    opened.locator("#smooth").focus()
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.closest('figure')") is None, "charts are not in the tab order"


def test_on_a_phone_a_drag_in_a_chart_scrolls_and_a_tap_shows_values(browser, address):
    with window(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        rate = chart(page, "Pass rate of rollouts")
        until(rate, PIXELS, "found.length > 0")
        assert rate.evaluate(TOUCH) == "auto", "the browser handles scrolling, not the chart"
        rate.locator(".plot").tap(position={"x": 150, "y": 90})
        expect(rate.locator(".readout:visible")).to_contain_text("step 2")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_all_charts_are_printed_in_light_colours(opened):
    chart(opened, "pass@1, held out")
    opened.keyboard.press("t")
    assert opened.locator(".plot:empty").count() > 0, "charts far below are drawn only near the view"
    opened.evaluate("""() => addEventListener("beforeprint", () => Promise.resolve().then(() => {
        window.printed = [...document.querySelectorAll("figure")].map((figure) =>
            [...figure.querySelectorAll(".paper path")].map((path) => path.getAttribute("stroke")));
    }))""")
    assert opened.pdf().startswith(b"%PDF")
    printed = opened.evaluate("printed")
    assert all(f"rgb({LIGHT_GRID})" in strokes for strokes in printed)
    assert opened.locator(".paper").count() == 0
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_list_sorts_filters_and_searches(opened):
    assert len(listed(opened)) == 32
    assert listed(opened)[:5] == [(0, 4, 2), (0, 3, 2), (0, 2, 2), (0, 1, 2), (0, 4, 1)]
    assert first_kinds(opened, 5) == ["right answer, wrong step"] * 4 + ["wrong answer, no wrong step"]
    opened.select_option("#sort", "advantage spread")
    assert [sample for _, _, sample in listed(opened)[:8]] == [2] * 4 + [3] * 4
    opened.select_option("#sort", "reward, lowest first")
    assert {sample for _, _, sample in listed(opened)[:16]} == {1, 3, 5, 6}
    opened.select_option("#sort", "length, longest first")
    assert {sample for _, _, sample in listed(opened)[:8]} == {1, 2}
    opened.select_option("#sort", "step, first first")
    assert [step for _, step, _ in listed(opened)] == [1] * 8 + [2] * 8 + [3] * 8 + [4] * 8
    opened.select_option("#kind", "wrong-flagged")
    assert {sample for _, _, sample in listed(opened)} == {3}
    opened.select_option("#kind", "")
    opened.select_option("#run", "1")
    assert {run for run, _, _ in listed(opened)} == {1}
    expect(opened.locator("#detail")).to_contain_text("This rollout has no critiques")
    opened.fill("#search", "no such text")
    expect(opened.locator("#count")).to_have_text("0 of 32 rollouts")


def test_a_critique_without_a_verdict_on_a_step_is_not_counted_there(opened):
    """As with critic.reads: step, where each step has its own critiques."""
    part, whole = {"abstained": False, "wrong_steps": [0], "unread": [1]}, {"abstained": False, "wrong_steps": []}
    rollout = {"critiques": [part, whole], "votes": [1, 0]}
    lines = opened.evaluate("(r) => [0, 1].map((step) => voteLine(r, step))", rollout)
    assert lines == ["1 of 2 valid critiques against it, vote 1", "0 of 1 valid critique against it, vote 0"]
    said = opened.evaluate("(r) => r.critiques.map((each, number) => noteOf(each, number, 1)[0].textContent)", rollout)
    assert said == ["– no verdict on this step, no vote · critique 1", "✓ not wrong · critique 2"]
    assert "Critique 1 · wrong: 0 · 1 step without a verdict" in opened.evaluate(
        "(each) => critiqueDetails(each, 0).textContent", part
    )


def test_hostile_text_has_its_colours_and_critiques_by_mouse_and_by_keys(opened):
    assert HOSTILE in opened.locator("#problem").text_content()
    assert opened.locator("main img, main script").count() == 0
    assert "<img src=x onerror=pwned=1> 100%#é" in opened.title()
    steps = opened.locator("#detail .step")
    expect(steps).to_have_count(3)
    weights = steps.locator(".text").evaluate_all(
        "nodes => nodes.map((n) => [n.classList.contains('neg'), +n.style.getPropertyValue('--w')])"
    )
    assert weights == [[False, 0.75], [True, 0.15], [False, 0.75]]
    note = opened.get_by_role("tooltip")
    expect(note).to_be_hidden()
    steps.nth(1).hover()
    expect(note).to_contain_text("step_1 is wrong </script><script>window.pwned")
    expect(note).to_contain_text("2 of 2 valid critiques against it, vote 1")
    opened.keyboard.press("Escape")
    expect(note).to_be_hidden()
    opened.focus("#list")
    opened.keyboard.press("ArrowRight")
    expect(steps.nth(0)).to_be_focused()
    opened.keyboard.press("ArrowRight")
    expect(steps.nth(1)).to_be_focused()
    expect(note).to_contain_text("✗ wrong · critique 2")
    opened.keyboard.press("ArrowRight")
    expect(note).to_contain_text("1 of 2 valid critiques against it, vote 0")
    for width in (1280, 390):
        opened.set_viewport_size({"width": width, "height": 844})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert note.bounding_box()["x"] + note.bounding_box()["width"] <= width


def test_keys_move_search_and_help_and_a_link_opens_its_rollout(opened):
    here = "decodeURI(location.hash)"
    opened.keyboard.press("j")
    assert opened.evaluate(here).endswith("/3/0/2")
    opened.keyboard.press("k")
    opened.keyboard.press("k")
    assert opened.evaluate(here).endswith("/4/0/2")
    opened.focus("#list")
    opened.keyboard.press("ArrowDown")
    assert opened.evaluate(here).endswith("/3/0/2")
    assert opened.get_attribute("#list", "aria-activedescendant") == opened.get_attribute("[aria-selected=true]", "id")
    opened.keyboard.press("?")
    expect(opened.get_by_role("dialog", name="Keys")).to_be_visible()
    opened.keyboard.press("Escape")
    expect(opened.get_by_role("dialog")).to_be_hidden()
    opened.keyboard.press("/")
    opened.keyboard.type("step 0 of 5")
    assert {sample for _, _, sample in listed(opened)} == {5}
    link = opened.url
    shown = opened.locator("#detail").inner_text()
    opened.goto("about:blank")
    opened.goto(link)
    assert opened.locator("#detail").inner_text() == shown
    expect(opened.locator("#detail")).to_be_in_viewport()
    opened.evaluate("location.hash = '#rollout/x/%zz'")
    expect(opened.locator("#count")).to_have_text("#rollout/x/%zz is not among the rollouts of this page")
