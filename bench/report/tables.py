"""Results as Markdown tables: one per case, a row per provider. Empty columns are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bench.report.runs import Change, Machine, Measured, Row
from capo_fast.markdown import markdown_table

NONE = "–"
MIB = 2**20


def number(x: float) -> str:
    """Three significant digits.

    >>> number(1234.5), number(56.78), number(9.0), number(0.01234), number(0)
    ('1,234', '56.8', '9.00', '0.0123', '0')
    """
    if x == 0:
        return "0"
    size = abs(x)
    return f"{x:,.0f}" if size >= 99.95 else f"{x:.1f}" if size >= 9.995 else f"{x:#.3g}"


def percent(x: float) -> str:
    return f"{100 * x:.2g} %" if abs(x) < 0.1 else f"{100 * x:.0f} %"


def milliseconds(row: Row) -> str:
    """The median, and the extremes if there are several rounds."""
    least, most = (number(1e3 * bound(row.seconds)) for bound in (min, max))
    return number(1e3 * row.median) + (f" [{least}, {most}]" if len(row.seconds) > 1 else "")


def change_text(change: Change | None) -> str:
    """
    >>> change_text(Change(0.071, True)), change_text(Change(-0.02, True)), change_text(Change(0.3, False))
    ('▲ 7.1 % slower', '-2.0 %', 'time +30.0 %')
    >>> change_text(Change(-0.06, against_bound=True, within_spread=True))
    '▼ 6.0 % faster (within the spread)'
    """
    if change is None:
        return NONE
    if not change.against_bound:
        return f"time {100 * change.share:+.1f} %"
    if not change.marked:
        return f"{100 * change.share:+.1f} %"
    sign, word = ("▲", "slower") if change.share > 0 else ("▼", "faster")
    return f"{sign} {abs(100 * change.share):.1f} % {word}" + " (within the spread)" * change.within_spread


@dataclass
class Notes:
    """Footnotes on outputs that a provider leaves out, numbered by first use."""

    texts: list[str] = field(default_factory=list)

    def sign(self, text: str) -> str:
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return superscript(1 + self.texts.index(text))

    def lines(self) -> list[str]:
        """An empty line and the footnotes; no lines without footnotes."""
        return [""] * bool(self.texts) + [
            f"- {superscript(i)} computes less than ours: {text}" for i, text in enumerate(self.texts, 1)
        ]


def superscript(n: int) -> str:
    return str(n).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


Column = tuple[str, Callable[[Row], str]]


def columns(measured: Measured, notes: Notes) -> list[Column]:
    """Title and cell of each column."""
    first = measured.first
    by_flops = any(row.flops_per_second for row in measured.rows)
    rate: Column = ("TFLOP/s", lambda row: number(row.flops_per_second / 1e12))
    if not by_flops:
        rate = ("GB/s", lambda row: number(row.bytes_per_second / 1e9))
    return [
        ("provider", lambda row: name(row, notes)),
        ("computes", lambda row: row.kind),
        ("ms, median [min, max]", milliseconds),
        ("times ours", lambda row: times_ours(measured, row)),
        ("MFU" if first.is_step else "share of the bound", lambda row: optional(percent, row.share_of_bound)),
        rate,
        ("tokens/s", lambda row: number(row.tokens / row.median) if row.is_step and not row.is_bound else NONE),
        ("extra MiB", lambda row: number(row.extra_bytes / MIB)),
        ("of the logits", lambda row: NONE if row.is_step else percent(row.extra_bytes / row.logits_bytes)),
        ("error", lambda row: optional(lambda x: f"{x:.1e}" if x else "0", row.error)),
        ("hot ms", lambda row: optional(lambda x: number(1e3 * x), row.hot_seconds)),
        ("host ms", lambda row: optional(lambda x: number(1e3 * x), row.host_seconds)),
        ("change", lambda row: change_text(measured.change(row))),
    ]


def name(row: Row, notes: Notes) -> str:
    return (f"**{row.provider}**" if row.ours else row.provider) + notes.sign(row.less)


def times_ours(measured: Measured, row: Row) -> str:
    """The time over that of our fastest provider of the same kind."""
    ours = measured.ours(row.kind)
    return NONE if ours is None else "1" if row is ours else number(row.median / ours.median)


def optional(text: Callable[[float], str], x: float | None) -> str:
    return NONE if x is None else text(x)


def case_table(measured: Measured, notes: Notes) -> list[str]:
    titles, cells = zip(*columns(measured, notes), strict=True)
    rows = [[cell(row) for cell in cells] for row in measured.rows]
    return table(titles, rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table without empty columns; text is left-aligned, figures right-aligned."""
    kept = [i for i in range(len(titles)) if any(row[i] != NONE for row in rows)]
    words = {"provider", "computes", "kernel", "case", "ours", "fastest peer", "change"}
    head, *lines = ([line[i] for i in kept] for line in [titles, *rows])
    return markdown_table(head, lines, right=set(head) - words).splitlines()


def case_title(row: Row) -> str:
    """`T = 512, V = 151,936, float32 (qwen2.5-0.5b): a usual micro-batch`"""
    hidden = f", H = {row.hidden:,}" if row.flops_per_second else ""
    return f"T = {row.tokens:,}{hidden}, V = {row.vocab:,}, {row.dtype} ({row.model}): {row.regime}"


def overview(machine: Machine) -> list[str]:
    """A line per kernel: the first case, ours against the bound and against the fastest peer."""
    notes = Notes()
    titles = ("kernel", "case", "ours", "ms", "share of the bound", "fastest peer", "peer's ms", "times ours")
    rows = (overview_row(cases[0], notes) for cases in machine.kernels().values())
    return [*table(titles, [row for row in rows if row]), *notes.lines()]


def overview_row(measured: Measured, notes: Notes) -> list[str] | None:
    ours, peer = measured.ours(measured.kind), measured.peer(measured.kind)
    if ours is None:
        return None
    return [
        ours.kernel,
        ours.case,
        name(ours, notes),
        number(1e3 * ours.median),
        optional(percent, ours.share_of_bound),
        name(peer, notes) if peer else NONE,
        number(1e3 * peer.median) if peer else NONE,
        times_ours(measured, peer) if peer else NONE,
    ]


def marked_changes(cases: Iterable[Measured]) -> list[str]:
    """A line per marked change of ours, and one with the number of the peers' changes."""
    marked = [
        (row, change_text(change))
        for measured in cases
        for row in measured.rows
        if (change := measured.change(row)) and change.marked
    ]
    lines = [f"{row.kernel} {row.case}, {row.provider} against the bound: {text}" for row, text in marked if row.ours]
    peers = len(marked) - len(lines)
    return [*lines, f"and {peers} of the peers' times by more than 5 %: see the tables"] if peers else lines
