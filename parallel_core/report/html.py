"""The report as an HTML page: one file with its charts and without scripts."""

from __future__ import annotations

from html import escape

from parallel_core import quantities

from . import formats
from .formats import errors_to_show
from .model import ModelReport, RunReport, Timeline
from .svg import Chart, linear_axis, log_axis, time_axis

# Forbid to fetch or run anything, whatever a name in the files contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark;
  --ground: #fff; --panel: #f6f7f9; --text: #1c2430; --quiet: #5b6675; --rule: #dde1e7;
  --blue: #2563eb; --green: #0d9166; --red: #cf3341; --orange: #c86f04; --violet: #7a45d6;
  --teal: #0e8aa3; --grey: #7b8794; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #12161c; --panel: #1b212a; --text: #e6eaf0; --quiet: #a0abb9; --rule: #303946;
  --blue: #6ea0ff; --green: #3ecf9b; --red: #ff7480; --orange: #f3a94a; --violet: #b794ff;
  --teal: #4cc9e0; --grey: #93a0ae; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1.5rem 1rem 3rem; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; color: var(--quiet); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: .75rem;
  margin: 1.25rem 0; padding: 0; }
.cards div { background: var(--panel); border-radius: 8px; padding: .6rem .9rem; }
.cards dt { color: var(--quiet); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; }
.facts dt { color: var(--quiet); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; gap: 1rem; margin-top: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; background: var(--panel); border-radius: 8px; padding: .8rem .9rem .5rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.key { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: 0 0 .3rem; padding: 0;
  list-style: none; font-size: .82rem; font-weight: 400; color: var(--quiet); }
.key li { overflow-wrap: anywhere; }
.key svg { width: .75em; height: .75em; margin-right: .35em; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); }
@media (max-width: 900px) { figure > svg text { font-size: 13px; } }
@media (max-width: 500px) { figure > svg text { font-size: 15px; } }
.frame line { stroke: var(--rule); } .frame .tick { stroke: var(--quiet); }
.mark line { stroke: var(--text); stroke-dasharray: 3 3; opacity: .7; }
.mark text { fill: var(--text); stroke: var(--panel); stroke-width: 4px; paint-order: stroke; }
.blue { fill: var(--blue); stroke: var(--blue); }
.green { fill: var(--green); stroke: var(--green); }
.red { fill: var(--red); stroke: var(--red); }
.orange { fill: var(--orange); stroke: var(--orange); }
.violet { fill: var(--violet); stroke: var(--violet); }
.teal { fill: var(--teal); stroke: var(--teal); } .grey { fill: var(--grey); stroke: var(--grey); }
rect { stroke: none !important; } rect:hover { opacity: .7; }
.area { fill-opacity: .2; stroke: none; } .line { fill: none; stroke-width: 1.8; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--quiet); font-weight: 500; vertical-align: bottom; }
th[scope=row], .name { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 9rem; }
tbody th { font-weight: 400; } .all > * { font-weight: 600; }
@media (max-width: 500px) { body { padding: 1rem .6rem 2rem; } th, td { padding: .3rem .45rem; }
  table { font-size: .88rem; } th[scope=row], .name { min-width: 6.5rem; } }
"""


BEGINNING = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="generator" content="parallel-core report">'
)
"""Beginning of every page. It distinguishes a report page from other files."""


def page(report: RunReport) -> str:
    """Return the whole page."""
    title = f"Report of {report.name}"
    parts = [
        BEGINNING,
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        _cards(report.total),
        _facts(report),
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        _charts(report),
        *(_table(table) for table in formats.tables(report)),
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _cards(total: ModelReport) -> str:
    cards = [
        ("requests", quantities.count(total.requests)),
        ("ok", quantities.count(total.ok)),
        ("failed", quantities.count(total.failed)),
    ]
    if total.calls_per_second is not None:
        cards.append(("calls/s", quantities.rate(total.calls_per_second)))
    if total.latency is not None:
        cards.append(("p50, seconds", quantities.seconds(total.latency.p50)))
        cards.append(("p95, seconds", quantities.seconds(total.latency.p95)))
    if total.calls:
        cards.append(("cost, USD", formats.cost(total)))
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in cards
    )
    return f'<dl class="cards">{inner}</dl>'


def _facts(report: RunReport) -> str:
    facts = formats.facts(report)
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<dl class="facts">{inner}</dl>' if facts else ""


def _table(table: formats.Table) -> str:
    classes = [' class="name"' if n < table.names else "" for n in range(len(table.heads))]
    head = "".join(
        f'<th scope="col"{of_column}>{escape(name)}</th>'
        for name, of_column in zip(table.heads, classes, strict=True)
    )
    body: list[str] = []
    for number, row in enumerate(table.rows):
        of_row = ' class="all"' if number >= len(table.rows) - table.sums else ""
        cells = "".join(
            f"<td{of_column}>{escape(cell)}</td>"
            for cell, of_column in zip(row[1:], classes[1:], strict=True)
        )
        body.append(f'<tr{of_row}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _charts(report: RunReport) -> str:
    figures: list[str] = []
    course = report.timeline
    if course is not None:
        figures += [_throughput(course), _in_flight(course)]
    if report.latency is not None:
        figures.append(_latency(report))
    if course is not None:
        figures.append(_errors(course))
        if course.cost[-1] > 0:
            figures.append(_cost(course))
    figures = [figure for figure in figures if figure]
    if not figures:
        return ""
    pauses = course is not None and course.pauses
    note = "<p>Dashed vertical lines mark pauses, which are left out.</p>" if pauses else ""
    return f'<h2>Charts</h2>{note}<div class="charts">{"".join(figures)}</div>'


def _figure(title: str, keys: list[tuple[str, str]], chart: Chart) -> str:
    key = "".join(
        f'<li><svg viewBox="0 0 8 8" aria-hidden="true"><rect class="{color}" width="8" '
        f'height="8"/></svg>{escape(name)}</li>'
        for name, color in keys
    )
    key = f'<ul class="key">{key}</ul>' if key else ""
    return f"<figure><figcaption>{escape(title)}{key}</figcaption>{chart.svg()}</figure>"


def _edges(course: Timeline) -> list[float]:
    return [course.step * part for part in range(len(course.ended) + 1)]


def _pauses(course: Timeline, chart: Chart) -> None:
    for pause in course.pauses:
        chart.mark(pause.at, f"a pause of {quantities.span(pause.seconds)}")


def _throughput(course: Timeline) -> str:
    rates = [ended / course.step for ended in course.ended]
    part = quantities.span(course.step)
    chart = Chart(
        "throughput",
        "Throughput over time",
        f"Calls that ended per second, averaged over {part}: at most "
        f"{quantities.rate(max(rates))}.",
        time_axis(course.step * len(rates)),
        linear_axis("calls/s", max(rates)),
    )
    chart.bars(
        _edges(course),
        rates,
        "blue",
        [
            f"{quantities.rate(rate)} calls/s: {ended:,} in {part}"
            for rate, ended in zip(rates, course.ended, strict=True)
        ],
    )
    _pauses(course, chart)
    return _figure("Throughput", [(f"calls/s, mean over {part}", "blue")], chart)


def _in_flight(course: Timeline) -> str:
    limits = [limit for limit in course.limit if limit is not None]
    part = quantities.span(course.step)
    description = (
        f"Calls in flight on average over {part}: at most {quantities.rate(max(course.in_flight))}."
    )
    keys = [(f"in flight, mean over {part}", "teal")]
    if limits:
        description += f" The limit was from {min(limits):,.0f} to {max(limits):,.0f}."
        keys.append(("limit", "orange"))
    chart = Chart(
        "in-flight",
        "Calls in flight over time",
        description,
        time_axis(course.step * len(course.in_flight)),
        linear_axis("calls", max([*course.in_flight, *limits])),
    )
    chart.area(_edges(course), course.in_flight, "teal")
    chart.stairs(_edges(course), course.limit, "orange")
    _pauses(course, chart)
    return _figure("Calls in flight and their limit" if limits else "Calls in flight", keys, chart)


def _latency(report: RunReport) -> str:
    found, percentiles = report.latency, report.total.latency
    assert found is not None
    description = f"{sum(found.ok):,} calls with an answer, {sum(found.failed):,} without."
    if percentiles is not None:
        description += (
            f" Half of the answers took at most {quantities.seconds(percentiles.p50)} s, 95 % at "
            f"most {quantities.seconds(percentiles.p95)} s, 99 % at most "
            f"{quantities.seconds(percentiles.p99)} s."
        )
    most = max(ok + failed for ok, failed in zip(found.ok, found.failed, strict=True))
    chart = Chart(
        "latency",
        "Distribution of latency",
        description,
        log_axis("latency, seconds", found.edges[0], found.edges[-1]),
        linear_axis("calls", most),
    )
    spans = [
        f"{quantities.seconds(low)} to {quantities.seconds(high)} s"
        for low, high in zip(found.edges, found.edges[1:], strict=False)
    ]
    keys: list[tuple[str, str]] = []
    below: list[float] | None = None
    for name, counts, color in (("ok", found.ok, "green"), ("failed", found.failed, "red")):
        if any(counts):
            tips = [
                f"{number:,} {name}, {span}" for number, span in zip(counts, spans, strict=True)
            ]
            chart.bars(found.edges, counts, color, tips, below)
            keys.append((name, color))
        below = [float(count) for count in counts]
    if percentiles is not None:
        for row, (label, value) in enumerate(
            (("p50", percentiles.p50), ("p95", percentiles.p95), ("p99", percentiles.p99))
        ):
            text = f"{label} {quantities.seconds(value)}"
            chart.mark(value, f"{text} s, of the calls with an answer", text, row)
    return _figure("Latency", keys, chart)


def _errors(course: Timeline) -> str:
    if not course.errors:
        return ""
    shown = errors_to_show(course)
    totals = [sum(counts) for counts in zip(*shown.values(), strict=True)]
    part = quantities.span(course.step)
    chart = Chart(
        "errors",
        "Failed calls over time, by kind",
        "; ".join(f"{name}: {sum(counts):,}" for name, counts in shown.items()) + ".",
        time_axis(course.step * len(totals)),
        linear_axis(f"failed calls in {part}", max(totals)),
    )
    colors = ("red", "orange", "violet", "teal", "blue", "grey")
    below = [0.0] * len(totals)
    keys: list[tuple[str, str]] = []
    for (name, counts), color in zip(shown.items(), colors, strict=False):
        tips = [f"{number:,} in {part}: {name}" for number in counts]
        chart.bars(_edges(course), counts, color, tips, below)
        below = [bottom + number for bottom, number in zip(below, counts, strict=True)]
        keys.append((f"{name}: {sum(counts):,}", color))
    _pauses(course, chart)
    return _figure("Failed calls by kind", keys, chart)


def _cost(course: Timeline) -> str:
    edges = _edges(course)
    chart = Chart(
        "cost",
        "Cumulative cost",
        f"It reaches {quantities.money(course.cost[-1])} USD.",
        time_axis(edges[-1]),
        linear_axis("USD", course.cost[-1]),
    )
    chart.line(edges, [0.0, *course.cost], "violet")
    _pauses(course, chart)
    return _figure("Cost", [("USD so far", "violet")], chart)
