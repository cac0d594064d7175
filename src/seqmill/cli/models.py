"""Verbs of models."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Out, Quiet, print_figures
from seqmill.errors import UserError

app = typer.Typer()


@app.command()
def train(
    packed: Annotated[Path, typer.Argument(help="A packed folder.")],
    out: Out,
    model: Annotated[str, typer.Option(help="tiny, 124m, 355m, 774m or 1.3b; bytes-0.2m, -0.8m or -3m.")] = "tiny",
    steps: Annotated[int, typer.Option(help="Updates.")] = 1000,
    batch_tokens: Annotated[int, typer.Option(help="Room of one update's rows, in tokens.")] = 8192,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default: the model's own.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or muon for the matrices of the layers.")] = "adamw",
    schedule: Annotated[str, typer.Option(help="Of the rate after warm-up: cosine, linear or wsd.")] = "cosine",
    normalisation: Annotated[
        str, typer.Option(help="Of the loss: token-mean, sample-mean, segment-mean, rank-token-mean or sum.")
    ] = "token-mean",
    checkpoint_every: Annotated[int, typer.Option(help="Updates between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of rows.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    parallel: Annotated[str, typer.Option(help="Of several ranks: ddp or fsdp.")] = "ddp",
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

    Several ranks of one machine: torchrun --nproc-per-node 8 -m seqmill train PACKED --out OUT ...
    """
    from seqmill.models.training.ranks import launched_rank
    from seqmill.pipeline.config import set_value
    from seqmill.pipeline.executors import make_executor
    from seqmill.pipeline.model_steps import read_train_config, train_model
    from seqmill.pipeline.progress import make_progress
    from seqmill.storage import only_writer

    if executor == "local" and workers > 1:
        raise UserError(
            f"--workers {workers}: torchrun starts the ranks of one machine: torchrun --nproc-per-node {workers} -m "
            "seqmill train ...; or use --executor ray"
        )
    flags = {"model": model, "steps": steps, "batch_tokens": batch_tokens, "checkpoint_every": checkpoint_every}
    flags |= {"optimizer": optimizer, "schedule": schedule, "normalisation": normalisation, "parallel": parallel}
    flags |= {"seed": seed, "device": device, "learning_rate": learning_rate, "plan": plan and str(plan)}
    given = {name: value for name, value in flags.items() if value is not None}
    for setting in settings or []:
        set_value(given, setting)
    config = read_train_config(given)
    is_first = launched_rank() == 0
    progress, ranks = make_progress(quiet or not is_first), make_executor(executor, workers, address)
    with only_writer(out) if is_first else nullcontext():
        result = train_model(packed, config, out, progress, ranks)
    if is_first:
        print_figures("train", result, as_json)


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
