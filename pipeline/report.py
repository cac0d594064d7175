"""The report of a run: one JSON file for machines, one screen for people."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqmill import __version__
from seqmill.compress import bits_per_byte
from seqmill.pipeline.funnel import UNITS, check_funnel
from seqmill.pipeline.mixing.damage import damage_lines
from seqmill.pipeline.pack import bucket_figures

if TYPE_CHECKING:
    from rich.table import Table


MOST_SOURCES = 8  # that the screen shows of a mix

# The stages of the funnel, in order, and what else a report takes from their manifests.
FIGURES = {
    "ingest": (),
    "filter": ("by_source", "masked"),
    "dedup": ("expected_recall", "alarms", "overlap", "by_source", "verification", "holdout", "index"),
    "substrings": ("by_source", "duplicates", "occurrences"),
    "traps": ("traps", "added"),
    "mix": ("unit", "repeated", "by_source", "damage_band"),
}


def build_report(
    out: Path,
    manifests: Mapping[str, Mapping[str, Any]],
    trained: Mapping[str, Any] | None,
    samples: Sequence[Mapping[str, Any]] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Gather what the stages counted. All but "seconds", "machine" and "out" depends on input and settings alone.

    Args:
        out: the run's folder.
        manifests: stage -> manifest, for the stages that ran.
        trained: the training result, if there was training.
        samples: prompts and continuations, if there was generation.
        seconds: wall seconds per stage of this invocation.
    """
    funnel = [entry for stage in FIGURES for entry in manifests.get(stage, {}).get("funnel", [])]
    check_funnel(funnel)
    tokens, packed = manifests["tokenize"], manifests["pack"]
    repeated = manifests.get("mix", {}).get("repeated", dict.fromkeys(UNITS, 0))
    for unit in UNITS:
        assert tokens["totals"][unit] == funnel[-1][f"{unit}_out"] + repeated[unit], (funnel[-1], repeated)
    report: dict[str, Any] = {
        "seqmill": __version__,
        "out": str(out),
        "funnel": funnel,
        "documents": tokens["totals"]["documents"],
        "bytes": tokens["totals"]["bytes"],
        "tokens": tokens["totals"]["tokens"],
        "vocab_size": tokens["vocab_size"],
        "bytes_per_token": tokens["totals"]["bytes_per_token"],
        "unigram_entropy": tokens["totals"]["unigram_entropy_nats"],
        "packing": {**packing_figures(packed), **bucket_figures(packed)},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }
    for stage, names in FIGURES.items():
        if names and stage in manifests:
            report[stage] = {name: manifests[stage][name] for name in names if name in manifests[stage]}
    if trained is not None:
        per_token = tokens["totals"]["tokens"], tokens["totals"]["bytes"]
        report["train"] = {**trained, "bits_per_byte_last": round(bits_per_byte(trained["loss_last"], *per_token), 4)}
    if samples is not None:
        report["generate"] = {"samples": list(samples)}
    return report


def packing_figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says about packed rows."""
    totals, drops = manifest["totals"], manifest["drops"]
    return {
        "seq_len": manifest["pack"]["capacity"],
        "rows": totals["rows"],
        "lower_bound_rows": totals["lower_bound_rows"],
        "efficiency": round(totals["efficiency"], 6),
        "tokens": totals["tokens"],
        "segments": totals["segments"],
        "overflow": drops["policy"],
        "dropped_tokens": drops["tokens"],
        "dropped_documents": drops["documents"],
        "split_documents": drops["documents_split"],
        "truncated_documents": drops["documents_truncated"],
        "empty_documents": drops["documents_empty"],
    }


def print_report(report: Mapping[str, Any]) -> None:
    """Show a report on stdout: the funnel, the figures, the samples, and where the outputs lie."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False, markup=False)  # names may hold brackets
    console.print(_funnel_table(report["funnel"], report.get("mix", {}).get("repeated")))
    if dedup := report.get("dedup"):
        curve = ", ".join(f"{similarity}: {share:.3f}" for similarity, share in dedup["expected_recall"].items())
        console.print(f"near pairs      expected to be found, by Jaccard similarity: {curve}")
    if mixed := report.get("mix"):
        for line in _mix_lines(mixed):
            console.print(line)
    packing = report["packing"]
    room = f"up to {packing['seq_len']}" if "bucket_rows" in packing else packing["seq_len"]
    console.print(
        f"tokens          {report['tokens']:,} ({report['bytes_per_token']:.2f} bytes per token, "
        f"vocabulary {report['vocab_size']:,})"
    )
    console.print(
        f"packing         {packing['rows']:,} rows of {room}, {packing['efficiency']:.2%} full, "
        f"{packing['dropped_tokens']:,} tokens dropped, {packing['split_documents']:,} documents split"
    )
    if train := report.get("train"):
        console.print(
            f"training        loss {train['loss_first']:.3f} -> {train['loss_last']:.3f} nats per token "
            f"({train['bits_per_byte_last']:.2f} bits per byte) over {train['tokens_seen']:,} targets; "
            f"unigram entropy {report['unigram_entropy']:.3f}"
        )
    for sample in report.get("generate", {}).get("samples", []):
        console.print(Text(f"sample          {sample['prompt']!r} -> {sample['continuation']!r}"))
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report["seconds"].items())
    console.print(f"seconds         {seconds}")
    console.print(f"outputs         {report['out']} (report.json, packed/, train/, tokenizer/)")


def _mix_lines(mixed: Mapping[str, Any]) -> list[str]:
    """What each source became, the largest first, and what its repetition does to a model of the given size."""
    sources = mixed["by_source"]
    largest = sorted(sources, key=lambda name: (-sources[name]["size"], name))
    shown = [
        f"{name} {sources[name]['share']:.1%} ({sources[name]['epochs']:.3g} x)" for name in largest[:MOST_SOURCES]
    ]
    more = [f"{len(largest) - MOST_SOURCES:,} more"] if len(largest) > MOST_SOURCES else []
    lines = [f"mix             {mixed['unit']} by source, and times seen: {', '.join(shown + more)}"]
    if "damage_band" in mixed:
        warned = damage_lines(mixed["damage_band"], {name: source["epochs"] for name, source in sources.items()})
        lines += [f"repetition      {line}" for line in warned]
    return lines


def _funnel_table(funnel: Sequence[Mapping[str, Any]], repeated: Mapping[str, int] | None) -> "Table":
    """Documents and bytes in, lost or added by reason, and out, per stage; `repeated`: the copies that a mix added."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("stage")
    for name in UNITS:
        table.add_column(name, justify="right")
    for entry in funnel:
        table.add_row(f"{entry['stage']} in", *(f"{entry[f'{unit}_in']:,}" for unit in UNITS))
        for reason, count in entry["reasons"].items():
            if any(count.values()):
                table.add_row(
                    f"  {'-' if count['bytes'] >= 0 else '+'} {reason}", *(_change(-count[unit]) for unit in UNITS)
                )
    added = repeated or dict.fromkeys(UNITS, 0)
    if any(added.values()):
        table.add_row("  + mix repeats", *(_change(added[unit]) for unit in UNITS))
    table.add_row("out", *(f"{funnel[-1][f'{unit}_out'] + added[unit]:,}" for unit in UNITS))
    return table


def _change(number: int) -> str:
    return f"{number:+,}" if number else "0"
