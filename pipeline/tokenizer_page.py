"""A tokenizer report for people: tables on the screen, and one HTML page with plots that needs nothing else."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqmill.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

PAGE = "report.html"
SCREEN_GROUPS = 8  # the largest, on the screen and in plots; the page has all
ALL = "all together"

Report = Mapping[str, Any]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _ratio(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: Any) -> str:
    """Nothing is rounded to 100 % that is less."""
    return "-" if value is None else f"{value:.2%}" if value in (0, 1) or 0.0001 < value < 0.9999 else f"{value:.4%}"


def _fertility(figures: Mapping[str, Any]) -> str:
    mark = "*" if (figures["unspaced"] or 0) > 0.5 else ""
    return _ratio(figures["tokens_per_word"]) + mark


Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]

FIGURES: Columns = {
    "documents": lambda f: _number(f["documents"]),
    "bytes": lambda f: _number(f["bytes"]),
    "tokens": lambda f: _number(f["tokens"]),
    "bytes/token": lambda f: _ratio(f["bytes_per_token"]),
    "tok/word": _fertility,
    "tok/char": lambda f: _ratio(f["tokens_per_character"]),
    "split": lambda f: _percent(f["split_words"]),
    "exact": lambda f: _percent(f["exact"]),
    "vocab used": lambda f: _percent(f["vocabulary_used"]),
    "Rényi": lambda f: _ratio(f["renyi_efficiency"]),
    "bits/byte": lambda f: _ratio(f["unigram_bits_per_byte"]),
}
PARITY: Columns = {"parity": lambda f: _ratio(f.get("parity"))}
SPEEDS: Columns = {
    f"{name} {state}": lambda rates, key=f"{name}_{state}": _number(rates[key])  # type: ignore[misc]
    for name in ("encode", "decode")
    for state in ("cold", "warm")
}
NOTES = (
    "tok/word: tokens per word, a run of other than white space; * most characters are of a script that is written "
    "without spaces: see tok/char, tokens per character",
    "split: share of words that are two ids or more, alone and behind a space",
    "exact: share of documents that come back from their ids byte for byte",
    "Rényi: efficiency of order 2.5, H / log |V|, of the whole vocabulary (Zouhar et al. 2023)",
    "bits/byte: entropy of the ids, per byte of text",
)


def print_report(report: Report) -> None:
    """Show a report on stdout: all documents, the largest groups, speeds, and what does not come back."""
    from rich.console import Console

    endless = Console(width=1000)
    tables = [_table(report, name, columns) for name, columns in _sections(report)]
    width = max(endless.measure(table).maximum for table in tables)
    console = Console(highlight=False, markup=False, width=width)  # a narrow terminal breaks lines, and hides nothing
    for table in tables:
        console.print(table)
    for line in (*NOTES, *_examples(report), *_timing_notes(report)):
        console.print(line, soft_wrap=True)


def write_page(report: Report, path: Path) -> None:
    """Write a report as one self-contained HTML page, plots included as SVG."""
    from jinja2 import Environment

    sections = [
        {"name": name, "columns": list(columns), "rows": list(_rows(report, name, columns, most=None))}
        for name, columns in _sections(report)
    ]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)
    page = template.render(
        report=report,
        sections=sections,
        plots=[_plot(report, title, draw) for title, draw in PLOTS.items() if _has_data(report, title)],
        notes=[*NOTES, *_examples(report), *_timing_notes(report)],
        longest=[(entry["tokenizer"], entry["all"]["longest_token"]) for entry in report["figures"]],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sections(report: Report) -> list[tuple[str, Columns]]:
    parity = PARITY if report["config"]["reference"] is not None else {}
    speeds = [("timings", SPEEDS)] if "timings" in report else []
    return [("figures", {**FIGURES, **parity}), *speeds]


def _table(report: Report, section: str, columns: Columns) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column(report["config"]["group_by"])
    table.add_column("tokenizer")
    for name in columns:
        table.add_column(f"{name} MB/s" if section == "timings" else name, justify="right")
    former = None
    for group, *cells in _rows(report, section, columns, SCREEN_GROUPS):
        table.add_row("" if group == former else group, *cells)
        former = group
    return table


def _rows(report: Report, section: str, columns: Columns, most: int | None) -> list[list[str]]:
    """One row for each group and tokenizer, all together first, then the groups with the most bytes."""
    found = {
        "figures": {entry["tokenizer"]: entry for entry in report["figures"]},
        "timings": report.get("timings", {}).get("tokenizers", {}),
    }[section]
    rows = []
    for group in (None, *_largest(report, most)):
        for name, entry in found.items():
            numbers = entry["all"] if group is None else entry["groups"].get(group)
            if numbers is not None:
                rows.append([ALL if group is None else group, name, *(show(numbers) for show in columns.values())])
    return rows


def _largest(report: Report, most: int | None) -> list[str]:
    groups = report["figures"][0]["groups"]
    return sorted(groups, key=lambda name: (-groups[name]["bytes"], name))[:most]


def _examples(report: Report) -> list[str]:
    """For each tokenizer that does not give back what it got, where it first did not."""
    lines = []
    for entry in report["figures"]:
        if example := entry["all"]["inexact"]:
            lines.append(
                f"{entry['tokenizer']} is not lossless: document {example['doc_id']}, byte {example['byte']}: "
                f"{example['text']!r} comes back as {example['decoded']!r}"
            )
    return lines


def _timing_notes(report: Report) -> list[str]:
    if "timings" not in report:
        return []
    timings = report["timings"]
    machine = ", ".join(f"{key} {value}" for key, value in timings["machine"].items())
    loads = ", ".join(f"{name} {entry['load_seconds']:g} s" for name, entry in timings["tokenizers"].items())
    return [
        f"speeds in MB/s of {timings['sample_bytes']:,} bytes on {machine}; cold: a fresh encoder, warm: the same text "
        f"again; loading: {loads}"
    ]


def _has_data(report: Report, title: str) -> bool:
    if not report["corpus"]["sampled"]["bytes"]:
        return False
    return {"Parity": report["config"]["reference"] is not None, "Speed": "timings" in report}.get(
        title.partition(",")[0], True
    )


def _plot(report: Report, title: str, draw: Callable[["Axes", Report], None]) -> dict[str, str]:
    """A plot as SVG text, the same for the same report."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has them
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot(), report)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return {"title": title, "svg": svg[svg.index("<svg") :]}


def _bars(axes: "Axes", values: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> None:
    """Bars side by side: one colour for each tokenizer, one place for each label; nothing where there is no value."""
    width = 0.8 / len(values)
    for at, (name, numbers) in enumerate(values.items()):
        places = [place + (at - (len(values) - 1) / 2) * width for place in range(len(labels))]
        axes.bar(places, [number or 0 for number in numbers], width, label=name)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    _finish(axes)


def _finish(axes: "Axes") -> None:
    """The names of the tokenizers above the plot, and no frame."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    axes.spines[["top", "right"]].set_visible(False)


def _figure_bars(key: str, label: str) -> Callable[["Axes", Report], None]:
    def draw(axes: "Axes", report: Report) -> None:
        groups = _largest(report, SCREEN_GROUPS)
        values = {entry["tokenizer"]: [entry["groups"][group][key] for group in groups] for entry in report["figures"]}
        _bars(axes, values, groups)
        axes.set_ylabel(label)

    return draw


def _rank_lines(axes: "Axes", report: Report) -> None:
    for entry in report["figures"]:
        ranks = entry["all"]["ranks"]
        axes.loglog(
            [rank for rank, _, _ in ranks], [share for _, share, _ in ranks], "o-", ms=3, label=entry["tokenizer"]
        )
    axes.set_xlabel("rank of the id")
    axes.set_ylabel("share of the tokens that have it")
    _finish(axes)


def _speed_bars(axes: "Axes", report: Report) -> None:
    found = report["timings"]["tokenizers"]
    values = {name: [entry["all"][key.replace(" ", "_")] for key in SPEEDS] for name, entry in found.items()}
    _bars(axes, values, list(SPEEDS))
    axes.set_yscale("log")
    axes.set_ylabel("MB/s")


PLOTS: Mapping[str, Callable[["Axes", Report], None]] = {
    "Bytes per token": _figure_bars("bytes_per_token", "bytes per token"),
    "Share of tokens by rank of the id": _rank_lines,
    "Parity, tokens for the same content": _figure_bars("parity", "tokens / tokens of the reference"),
    "Speed, all together": _speed_bars,
}

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Tokenizers</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
svg { max-width: 100%; height: auto }
code { background: #f3f3f3; padding: 0 .2rem }
</style>
</head>
<body>
<h1>Tokenizers</h1>
<p>{{ "{:,}".format(report.corpus.sampled.documents) }} documents,
{{ "{:,}".format(report.corpus.sampled.bytes) }} bytes, of {{ "{:,}".format(report.corpus.documents) }} documents,
{{ "{:,}".format(report.corpus.bytes) }} bytes; by {{ report.config.group_by }}
{%- if report.config.reference is not none %}; parity against {{ report.config.reference }}{% endif %}.</p>
<table>
<tr><th>tokenizer</th><th>kind</th><th>vocabulary</th><th>fingerprint</th></tr>
{% for entry in report.figures %}
<tr><td>{{ entry.tokenizer }}</td><td>{{ entry.kind }}</td><td>{{ "{:,}".format(entry.vocab_size) }}</td>
<td>{{ entry.fingerprint[:16] }}</td></tr>
{% endfor %}
</table>
{% for plot in plots %}
<h2>{{ plot.title }}</h2>
{{ plot.svg | safe }}
{% endfor %}
{% for section in sections %}
<h2>{{ section.name | capitalize }}</h2>
<table>
<tr><th>{{ report.config.group_by }}</th><th>tokenizer</th>
{% for column in section.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
<h2>Longest tokens that occur</h2>
<ul>
{% for name, token in longest if token %}
<li>{{ name }}: id {{ token.id }}, {{ token.bytes }} bytes, <code>{{ token.text }}</code></li>
{% endfor %}
</ul>
<h2>Notes</h2>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
<p>seqmill {{ report.seqmill }}; the same figures are in report.json.</p>
</body>
</html>
"""
