"""The `seqmill` command. Verbs import what they need when they run, so that `--help` is instant."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from seqmill.errors import UserError, as_user_error

app = typer.Typer(
    name="seqmill",
    help="From raw text to gradients, in Arrow: ingest, deduplicate, tokenize, pack, train, generate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tokenizer_app, name="tokenizer")

Inputs = Annotated[
    list[str], typer.Argument(metavar="IN...", help="Files, globs, folders, or a former stage's output.")
]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="local or ray.")]
Workers = Annotated[int | None, typer.Option(help="Units in progress at a time; default: all cores.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster; default: this job's own, or an embedded one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option(help="No progress on stderr.")]


def main() -> None:
    """Run the command line: user errors are one line on stderr and exit code 2; our own errors keep their traceback."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        app()
    except UserError as error:
        print(f"seqmill: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        friendly = as_user_error(error, "writing")
        if not isinstance(friendly, UserError):
            raise
        print(f"seqmill: {_one_line(friendly)}", file=sys.stderr)
        sys.exit(2)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. pack.seq_len=4096.")
    ] = [],  # noqa: B006
    executor: Annotated[str | None, typer.Option(help="local or ray; default: as configured.")] = None,
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole pipeline; run the same command again to resume."""
    from seqmill.pipeline import load_config
    from seqmill.pipeline import run as run_pipeline
    from seqmill.pipeline.progress import make_progress
    from seqmill.pipeline.report import print_report

    flags = {"executor": executor, "workers": workers, "address": address}
    overrides = [*set_, *(f"execution.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None)]
    report = run_pipeline(load_config(config, overrides), make_progress(quiet))
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)


@app.command()
def ingest(
    inputs: Inputs,
    out: Out,
    text_field: Annotated[str, typer.Option(help="Field or column with the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Field with the user's id.")] = "id",
    source_field: Annotated[str, typer.Option(help="Field with the source.")] = "source",
    separator: Annotated[
        str | None, typer.Option(help="Between the documents of a text file; \\n is a new line.")
    ] = None,
    unicode: Annotated[str, typer.Option(help="none or nfc.")] = "none",
    max_bad_fraction: Annotated[float, typer.Option(help="Unreadable records that are tolerated.")] = 0.001,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read raw files into a documents folder."""
    from seqmill.pipeline.ingest import IngestConfig
    from seqmill.pipeline.ingest import ingest as ingest_stage
    from seqmill.pipeline.normalise import NormaliseConfig

    config = IngestConfig(
        inputs=tuple(inputs),
        text_field=text_field,
        id_field=id_field,
        source_field=source_field,
        separator=None if separator is None else _unescaped(separator),
        max_bad_fraction=max_bad_fraction,
    )
    with _stage("ingest", out, executor, workers, address, quiet, as_json) as stage:
        stage.manifest = ingest_stage(
            config, NormaliseConfig(unicode=unicode), stage.out, stage.executor, stage.progress
        )


@app.command()
def dedup(
    inputs: Inputs,
    out: Out,
    id_field: Annotated[str, typer.Option(help="Field with the user's id, for raw inputs.")] = "id",
    preset: Annotated[str, typer.Option(help="Recipe for candidates.")] = "fineweb",
    threshold: Annotated[float, typer.Option(help="Jaccard similarity that removes a near duplicate.")] = 0.8,
    scope: Annotated[str, typer.Option(help="global, or local: inside each source.")] = "global",
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove exact and verified near duplicates."""
    from seqmill.pipeline.dedup import DedupConfig
    from seqmill.pipeline.dedup import dedup as dedup_stage

    config = DedupConfig(preset=preset, threshold=threshold, scope=scope)
    with _stage("dedup", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs, id_field=id_field)
        stage.manifest = dedup_stage(documents, config, stage.out, stage.executor, stage.progress)


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: Inputs,
    out: Out,
    kind: Annotated[str, typer.Option(help="bpe or byte.")] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Ids, the end-of-text id included.")] = 32_768,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn a vocabulary from documents."""
    from seqmill.manifest import open_manifest
    from seqmill.pipeline.train_tokenizer import TokenizerConfig, train_tokenizer

    config = TokenizerConfig(kind=kind, vocab_size=vocab_size)
    with _stage("tokenizer", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs)
        encoder = train_tokenizer(documents, config, stage.out, stage.executor, stage.progress)
        figures = {"kind": encoder.kind, "vocab_size": encoder.vocab_size, "fingerprint": encoder.fingerprint}
        stage.figures = {**open_manifest(documents)["totals"], **figures}


@app.command()
def tokenize(
    inputs: Inputs,
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer folder, or a tokenizer.json.")],
    out: Out,
    append_eos: Annotated[bool, typer.Option(help="Put the end-of-document id behind every document.")] = True,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn documents into ids."""
    from seqmill.pipeline.tokenize import TokenizeConfig
    from seqmill.pipeline.tokenize import tokenize as tokenize_stage

    with _stage("tokenize", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs)
        config = TokenizeConfig(append_eos=append_eos)
        stage.manifest = tokenize_stage(documents, tokenizer, config, stage.out, stage.executor, stage.progress)


@app.command()
def pack(
    tokens: Annotated[Path, typer.Argument(help="A tokens folder.")],
    out: Out,
    seq_len: Annotated[int, typer.Option(help="Tokens that a row has room for.")] = 2048,
    overflow: Annotated[str, typer.Option(help="Longer documents: split, truncate, drop or error.")] = "split",
    seed: Annotated[int, typer.Option(help="Of the order of rows.")] = 0,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pack a tokens folder into rows for training."""
    from seqmill.manifest import open_manifest
    from seqmill.pipeline.pack import PackConfig
    from seqmill.pipeline.pack import pack as pack_stage
    from seqmill.pipeline.report import packing_figures

    config = PackConfig(seq_len=seq_len, overflow=overflow, seed=seed)
    with _stage("pack", out, executor, workers, address, quiet, as_json) as stage:
        manifest = pack_stage(tokens.absolute(), config, stage.out, stage.executor, stage.progress)
        totals = open_manifest(tokens)["totals"]
        stage.figures = {"documents": totals["documents"], "bytes": totals["bytes"], **packing_figures(manifest)}


@app.command()
def train(
    packed: Annotated[Path, typer.Argument(help="A packed folder.")],
    out: Out,
    model: Annotated[str, typer.Option(help="tiny, 124m, 355m, 774m or 1.3b.")] = "tiny",
    steps: Annotated[int, typer.Option(help="Updates.")] = 1000,
    batch_tokens: Annotated[int, typer.Option(help="Room of one update's rows, in tokens.")] = 8192,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default: the model's own.")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Updates between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of rows.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a packed folder; run the same command again to resume."""
    from seqmill.pipeline.model_steps import read_train_config, train_model
    from seqmill.pipeline.progress import make_progress
    from seqmill.storage import only_writer

    flags = {"model": model, "steps": steps, "batch_tokens": batch_tokens, "checkpoint_every": checkpoint_every}
    more = {"seed": seed, "device": device, **({} if learning_rate is None else {"learning_rate": learning_rate})}
    with only_writer(out):
        result = train_model(packed, read_train_config({**flags, **more}), out, make_progress(quiet))
    _print_figures("train", result, as_json)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, or one of its checkpoints.")],
    prompts: Annotated[Path, typer.Option(help='One prompt a line; *.jsonl: the field "text".')],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add to each prompt at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token every time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many tokens.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a trained model, by packed prefill."""
    from seqmill.pipeline.config import GenerateConfig
    from seqmill.pipeline.model_steps import continue_texts

    config = GenerateConfig(_read_prompts(prompts), max_new_tokens, temperature, top_k, seed)
    samples = continue_texts(checkpoint, config)
    if as_json:
        print(json.dumps({"samples": samples}, ensure_ascii=False))
    else:
        for sample in samples:
            print(f"{sample['prompt']!r} -> {sample['continuation']!r}")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Documents, tokens or packed rows.")],
    validate: Annotated[
        bool, typer.Option("--validate", help="Read everything and check hashes and invariants.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a folder holds; with --validate, exit 1 when anything is wrong with it."""
    from seqmill.pipeline.inspection import inspect_folder

    figures, faults = inspect_folder(folder, validate)
    _print_figures(figures["kind"], {**figures, **({"faults": faults} if validate else {})}, as_json)
    if faults:
        sys.exit(1)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="A file of benchmarks/; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks beside their peers."""
    from seqmill.pipeline.bench import benchmark_names, run_benchmark

    for chosen in [name] if name else benchmark_names():
        result = run_benchmark(chosen)
        if as_json:
            print(json.dumps(result))
            continue
        print(f"{chosen} on " + ", ".join(f"{key} {value}" for key, value in result["machine"].items()))
        for row in result["rows"]:
            print(f"  {row['case']:<40} {row['system']:<24} {row['value']:>10,} {row['unit']}")


class _Stage:
    """What a stage's verb works with, and what it leaves to be printed."""

    def __init__(self, out: Path, executor: Any, progress: Any) -> None:
        self.out = out
        self.executor = executor
        self.progress = progress
        self.manifest: Mapping[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self.quarantined = 0

    def documents(self, inputs: list[str], **fields: str) -> Path:
        """The documents folder that `inputs` name, or one made from raw files in OUT/documents."""
        from seqmill.manifest import MANIFEST, open_manifest
        from seqmill.pipeline.ingest import IngestConfig
        from seqmill.pipeline.ingest import ingest as ingest_stage
        from seqmill.pipeline.normalise import NormaliseConfig

        folder = Path(inputs[0])
        if len(inputs) == 1 and (folder / MANIFEST).is_file():
            open_manifest(folder, "documents")
            return folder.absolute()
        config = IngestConfig(inputs=tuple(inputs), **fields)  # type: ignore[arg-type]
        manifest = ingest_stage(config, NormaliseConfig(), self.out / "documents", self.executor, self.progress)
        self.quarantined = manifest["quarantined"]["documents"]
        return self.out / "documents"


@contextmanager
def _stage(
    name: str, out: Path, executor: str, workers: int | None, address: str | None, quiet: bool, as_json: bool
) -> Iterator[_Stage]:
    """Hold `out`, time the stage, and print its figures at the end."""
    import time

    from seqmill.pipeline.executors import make_executor
    from seqmill.pipeline.progress import make_progress
    from seqmill.storage import local_folder, only_writer

    began = time.monotonic()
    folder = local_folder(out)
    with only_writer(folder):
        stage = _Stage(folder, make_executor(executor, workers, address), make_progress(quiet))
        yield stage
    totals = stage.manifest.get("totals", {})
    quarantined = stage.manifest.get("quarantined", {"documents": stage.quarantined})["documents"]
    funnel = {"funnel": stage.manifest["funnel"]} if "funnel" in stage.manifest else {}
    seconds = round(time.monotonic() - began, 3)
    figures = {"documents": 0, "bytes": 0, **totals, **stage.figures, "quarantined": quarantined, **funnel}
    _print_figures(name, {**figures, "seconds": seconds, "out": str(out)}, as_json)


def _print_figures(name: str, figures: Mapping[str, Any], as_json: bool) -> None:
    """One JSON object, or one line of the plain figures."""
    if as_json:
        print(json.dumps(figures))
        return
    plain = {key: value for key, value in figures.items() if not isinstance(value, Mapping | list)}
    print(f"{name}: " + ", ".join(f"{key} {_rendered(value)}" for key, value in plain.items()))
    for fault in figures.get("faults", []):
        print(f"  {fault}")


def _rendered(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _unescaped(text: str) -> str:
    r"""`text` with \n, \t, \x1e and the like read as in Python; other characters, of any script, are themselves."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--separator {text!r} is no valid escape sequence ({error}); write \\\\ for a backslash"
        ) from error


def _read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a file: its lines, or the field "text" of each JSON line."""
    if not path.is_file():
        raise UserError(f"there is no prompts file {path}")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        if path.suffix != ".jsonl":
            return tuple(lines)
        prompts = tuple(json.loads(line)["text"] for line in lines)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("a text is no string")
        return prompts
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); convert it first") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f'{path}: every line must be a JSON object with "text" ({error!r})') from error
