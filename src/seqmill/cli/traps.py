"""Verbs of copyright traps."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Out, Quiet, Workers, print_figures, stage_of
from seqmill.errors import UserError

app = typer.Typer(help="Make, inject, verify and score copyright traps.", no_args_is_help=True, rich_markup_mode=None)

TrapsFile = Annotated[Path, typer.Option(help="The Parquet file of traps.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu or cuda.")]


@app.command()
def make(
    tokenizer: Annotated[Path, typer.Option(help="Lengths are counted with it.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; its manifest stands beside it as *.json.")],
    reference: Annotated[Path | None, typer.Option(help="Documents whose words traps are made of.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint that writes the traps, instead.")] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a trap.")] = "25,50,100",
    count: Annotated[int, typer.Option(help="Traps of each length; half of them are never injected.")] = 2000,
    buckets: Annotated[int, typer.Option(help="Ranges of perplexity, filled evenly.")] = 10,
    perplexity: Annotated[str, typer.Option(help="Limits of perplexity.")] = "1-100",
    max_jaccard: Annotated[float, typer.Option(help="Similarity of the tokens of two traps at most.")] = 0.2,
    reference_bytes: Annotated[int, typer.Option(help="Reference text to read at most.")] = 16_000_000,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write traps, members and non-members."""
    from seqmill.pipeline.traps import MakeConfig, make_traps

    config = MakeConfig(
        lengths=_numbers("--lengths", lengths),
        count=count,
        buckets=buckets,
        perplexity=_limits(perplexity),
        max_jaccard=max_jaccard,
        reference_bytes=reference_bytes,
        seed=seed,
    )
    manifest = make_traps(tokenizer, out, config, reference, model, device)
    unfilled = [
        f"{each['tokens']} tokens, perplexity {each['from']:g} to {each['to']:g}: "
        f"{each['made']} of {each['wanted']} traps could be made"
        for each in manifest["buckets"]
        if each["made"] < each["wanted"]
    ]
    print_figures("traps make", {**manifest["totals"], "out": str(out), "faults": unfilled}, as_json)


@app.command()
def inject(
    documents: Annotated[Path, typer.Argument(help="A documents folder, behind dedup and filters.")],
    traps: TrapsFile,
    out: Out,
    repetitions: Annotated[str, typer.Option(help="Copies of a trap; traps are shared out evenly.")] = "1,10,100",
    min_document_bytes: Annotated[int, typer.Option(help="Shorter documents get no trap.")] = 20_000,
    fuzzy: Annotated[int, typer.Option(help="Tokens to replace in every copy.")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="Whose tokens --fuzzy replaces.")] = None,
    seed: Seed = 0,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Hide the members in documents, one document per trap."""
    from seqmill.pipeline.traps import InjectConfig
    from seqmill.pipeline.traps import inject as inject_stage

    config = InjectConfig(_numbers("--repetitions", repetitions), min_document_bytes, seed, fuzzy)
    with stage_of("traps inject", out, executor, workers, address, quiet, as_json) as stage:
        folder = stage.documents([str(documents)])
        counted_with = tokenizer and tokenizer.absolute()
        stage.manifest = inject_stage(
            folder, traps.absolute(), config, stage.out, stage.executor, stage.progress, counted_with
        )
        added = stage.manifest["added"]
        stage.figures = {
            "traps": stage.manifest["traps"]["members"],
            "copies": added["copies"],
            "bytes_in": stage.manifest["entered"]["bytes"],
            "bytes_added": added["bytes"],
        }


@app.command()
def verify(
    traps: Annotated[Path, typer.Argument(help="The folder that `traps inject` wrote.")],
    tokens: Annotated[Path, typer.Option(help="Tokens made of it.")],
    packed: Annotated[Path | None, typer.Option(help="Rows packed from these tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for every copy in tokens and packed rows; exit 1 when one is missing."""
    from seqmill.pipeline.traps import verify_traps

    report = verify_traps(traps, tokens, packed)
    flat = {f"{place} {name}": n for place in ("tokens", "packed") for name, n in report.get(place, {}).items()}
    lost = [f"copy {each['copy']} of trap {each['trap_id']} is not in {each['from']}" for each in report["missing"]]
    shown = report if as_json else {"copies": report["copies"], **flat, "faults": lost}
    print_figures("traps verify", shown, as_json)
    if report["missing"]:
        sys.exit(1)


@app.command()
def score(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, or one of its checkpoints.")],
    traps: TrapsFile,
    out: Out,
    reference: Annotated[Path | None, typer.Option(help="Checkpoint that has not seen the traps.")] = None,
    min_k: Annotated[float, typer.Option(help="Share of least likely tokens that Min-K% averages.")] = 0.2,
    bootstrap: Annotated[int, typer.Option(help="Resamples behind a confidence interval.")] = 1000,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Tell whether a model was trained on the members."""
    from seqmill.pipeline.traps import ScoreConfig, score_traps

    report = score_traps(checkpoint, traps, ScoreConfig(min_k, bootstrap, seed), out, reference, device)
    if as_json:
        print_figures("traps score", {**report, "out": str(out)}, as_json)
        return
    print(f"{'tokens':>6} {'copies':>6} {'test':<6} {'AUC':>6}  95 % interval  TPR at 1 % FPR  members : non-members")
    for group in report["groups"]:
        length, copies = ("all" if group[key] is None else group[key] for key in ("tokens", "copies"))
        for test in report["tests"]:
            found = group[test]
            low, high = found["auc_ci95"]
            print(
                f"{length:>6} {copies:>6} {test:<6} {found['auc']:>6.3f}  {low:.3f} - {high:.3f}  "
                f"{found['tpr_at_1pct_fpr']:>14.3f}  {found['members']} : {found['non_members']}"
            )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"{flag} {text!r}: give whole numbers with commas between them, as in 1,10,100")
    return tuple(map(int, text.split(",")))


def _limits(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    if not found:
        raise UserError(f"--perplexity {text!r}: give a lower and an upper limit, as in 1-100")
    return float(found[1]), float(found[2])
