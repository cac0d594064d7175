"""The report of a run: one JSON file for machines, one screen for people."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqmill import __version__
from seqmill.compress import bits_per_byte
from seqmill.pipeline.funnel import check_funnel

if TYPE_CHECKING:
    from rich.table import Table


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
    funnel = [entry for stage in ("ingest", "dedup") for entry in manifests.get(stage, {}).get("funnel", [])]
    check_funnel(funnel)
    tokens, packed = manifests["tokenize"], manifests["pack"]
    assert tokens["totals"]["documents"] == funnel[-1]["documents_out"]
    assert tokens["totals"]["bytes"] == funnel[-1]["bytes_out"]
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
        "packing": packing_figures(packed),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }
    if "dedup" in manifests:
        names = ("expected_recall", "alarms", "overlap", "by_source", "verification")
        report["dedup"] = {name: manifests["dedup"][name] for name in names}
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

    console = Console(soft_wrap=True, highlight=False)
    console.print(_funnel_table(report["funnel"]))
    if dedup := report.get("dedup"):
        curve = ", ".join(f"{similarity}: {share:.3f}" for similarity, share in dedup["expected_recall"].items())
        console.print(f"near pairs      expected to be found, by Jaccard similarity: {curve}")
    packing = report["packing"]
    console.print(
        f"tokens          {report['tokens']:,} ({report['bytes_per_token']:.2f} bytes per token, "
        f"vocabulary {report['vocab_size']:,})"
    )
    console.print(
        f"packing         {packing['rows']:,} rows of {packing['seq_len']}, {packing['efficiency']:.2%} full, "
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


def _funnel_table(funnel: Sequence[Mapping[str, Any]]) -> "Table":
    """Documents and bytes in, lost by reason, and out, per stage."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("stage")
    for name in ("documents", "bytes"):
        table.add_column(name, justify="right")
    for entry in funnel:
        table.add_row(f"{entry['stage']} in", f"{entry['documents_in']:,}", f"{entry['bytes_in']:,}")
        for reason, count in entry["reasons"].items():
            if count["documents"] or count["bytes"]:
                table.add_row(f"  - {reason}", f"{-count['documents']:,}", f"{-count['bytes']:,}")
    last = funnel[-1]
    table.add_row("out", f"{last['documents_out']:,}", f"{last['bytes_out']:,}")
    return table
