"""Verbs of models."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Workers, print_figures, stage_of
from seqmill.errors import UserError

app = typer.Typer()


@app.command()
def train(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG|DIR", help="A packed folder, or a TOML file: packed, out and settings."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write, where CONFIG does not tell.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="tiny, 124m, 355m, 774m or 1.3b; bytes-0.2m, -0.8m or -3m.", show_default="tiny"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates.", show_default="1000")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Room of one update's rows, in tokens.", show_default="8192")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default: the model's own.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, or muon for the matrices of the layers.", show_default="adamw")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the rate after warm-up: cosine, linear or wsd.", show_default="cosine")
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            help="Of the loss: token-mean, sample-mean, segment-mean, rank-token-mean or sum.",
            show_default="token-mean",
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Updates between checkpoints.", show_default="100")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first weights and the order of rows.", show_default="0")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")] = None,
    parallel: Annotated[str | None, typer.Option(help="Of several ranks: ddp or fsdp.", show_default="ddp")] = None,
    plan: Annotated[Path | None, typer.Option(help="A file of `seqmill plan`: which rank takes which rows.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of TrainConfig, such as shape.layers=6."),
    ] = None,
    executor: ExecutorName = "local",
    workers: Annotated[int, typer.Option(help="Ranks, with --executor ray; locally torchrun starts them.")] = 1,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a packed folder; run the same command again to resume.

    Settings may stand in a TOML file instead; flags win over it, and --set over both.

    Several ranks of one machine: torchrun --nproc-per-node 8 -m seqmill train PACKED --out OUT ...
    """
    from seqmill.models.training.ranks import launched_rank
    from seqmill.pipeline.executors import make_executor
    from seqmill.pipeline.model_steps import read_training, train_model
    from seqmill.pipeline.progress import make_progress
    from seqmill.storage import only_writer

    if executor == "local" and workers > 1:
        raise UserError(
            f"--workers {workers}: torchrun starts the ranks of one machine: torchrun --nproc-per-node {workers} -m "
            "seqmill train ...; or use --executor ray"
        )
    flags: dict[str, object] = {
        "model": model,
        "steps": steps,
        "batch_tokens": batch_tokens,
        "checkpoint_every": checkpoint_every,
    }
    flags |= {"optimizer": optimizer, "schedule": schedule, "normalisation": normalisation, "parallel": parallel}
    flags |= {"seed": seed, "device": device, "learning_rate": learning_rate}
    flags |= {"plan": plan and str(plan), "out": out and str(out)}
    given = {name: value for name, value in flags.items() if value is not None}
    training = read_training(source, given, settings or [])
    is_first = launched_rank() == 0
    progress, ranks = make_progress(quiet or not is_first), make_executor(executor, workers, address)
    with only_writer(training.out) if is_first else nullcontext():
        result = train_model(training.packed, training.config, training.out, progress, ranks)
    if is_first:
        print_figures("train", result, as_json)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, one of its checkpoints, or a HF folder.")],
    prompts: Annotated[Path, typer.Option(help='One prompt a line; *.jsonl, *.arrow, *.parquet: the field "text".')],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add to each prompt at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token every time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many tokens; 0: among all.")] = 50,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest of so much probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Sample among those of so much of the likeliest one's.")] = None,
    samples: Annotated[int, typer.Option(help="Continuations of every prompt.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a continuation; again for more.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="copy, recycle or suffix: verify proposed tokens, the same text in fewer passes.")
    ] = None,
    beams: Annotated[int | None, typer.Option(help="The best of a search with so many; nothing is drawn then.")] = None,
    beam_groups: Annotated[int, typer.Option(help="Groups of beams that avoid each other's tokens.")] = 1,
    diversity: Annotated[float, typer.Option(help="How much so: nats for each earlier group's choice.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="An Arrow file for them, instead of printing.")] = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a trained model, by packed prefill."""
    from seqmill.pipeline.config import GenerateConfig
    from seqmill.pipeline.model_steps import continue_texts, write_samples

    config = GenerateConfig(
        _read_prompts(prompts),
        max_new_tokens,
        temperature,
        top_k or None,
        seed,
        top_p=top_p,
        min_p=min_p,
        samples=samples,
        stop=tuple(stop or ()),
        draft=draft,
        beams=beams,
        beam_groups=beam_groups,
        diversity=diversity,
        device=device,
    )
    found = continue_texts(checkpoint, config)
    for sample in found:
        if sample["error"] is not None:
            print(f"seqmill: {sample['error']}", file=sys.stderr)
    if out is not None:
        write_samples(found, out)
        failed = sum(sample["error"] is not None for sample in found)
        print_figures("generate", {"samples": len(found), "failed": failed, "out": str(out)}, as_json)
    elif as_json:
        print(json.dumps({"samples": found}, ensure_ascii=False))
    else:
        for sample in found:
            if sample["error"] is None:
                print(f"{sample['prompt']!r} -> {sample['continuation']!r}")


@app.command()
def score(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, one of its checkpoints, or a HF folder.")],
    inputs: Inputs,
    out: Out,
    embed: Annotated[str | None, typer.Option(help="Add embeddings: mean or last hidden state.")] = None,
    per_token: Annotated[bool, typer.Option(help="Add the log-probability of every token.")] = False,
    append_eos: Annotated[bool, typer.Option(help="Put the end-of-document id behind every text.")] = True,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass; a longer document goes alone.")] = 16384,
    unit_bytes: Annotated[int, typer.Option(help="Text of one work unit, about, in bytes.")] = 1 << 20,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(help="That each worker computes with, on a processor.")] = 1,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score documents or tokens with a trained model: log-probabilities, bits per byte, embeddings."""
    from seqmill.manifest import MANIFEST
    from seqmill.pipeline.model_steps import device_for
    from seqmill.pipeline.score_columns import ScoringConfig
    from seqmill.pipeline.scoring import score_corpus

    device = device_for(device, executor)
    config = ScoringConfig(embed, per_token, append_eos, max_tokens, unit_bytes, device, dtype, threads)
    if device == "cuda" and workers is None:
        workers = 1  # each worker would put a model of its own on the one device
    with stage_of("score", out, executor, workers, address, quiet, as_json) as stage:
        is_folder = len(inputs) == 1 and (Path(inputs[0]) / MANIFEST).is_file()
        data = Path(inputs[0]).absolute() if is_folder else stage.documents(inputs)
        stage.manifest = score_corpus(data, checkpoint, config, stage.out, stage.executor, stage.progress)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, or one of its checkpoints.")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write a trained model and its tokenizer as transformers reads them."""
    from seqmill.pipeline.model_steps import export_model

    print_figures("export", export_model(checkpoint, out), as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A Llama or Qwen3 of llama.cpp.")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Read a GGUF file once: its model and tokenizer as a folder for generate, score and transformers."""
    from seqmill.pipeline.model_steps import import_model

    print_figures("import", import_model(file, out), as_json)


def _read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a file: its lines, or the field "text" of each JSON line."""
    if not path.is_file():
        raise UserError(f"there is no prompts file {path}")
    if path.suffix in (".arrow", ".parquet"):
        from seqmill.pipeline.model_steps import read_prompts

        return read_prompts(path)
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
