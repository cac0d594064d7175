"""Verbs of tokenizers."""

from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Workers, stage_of

app = typer.Typer(help="Make tokenizers.", no_args_is_help=True, rich_markup_mode=None)


@app.command("train")
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
    with stage_of("tokenizer", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs)
        encoder = train_tokenizer(documents, config, stage.out, stage.executor, stage.progress)
        figures = {"kind": encoder.kind, "vocab_size": encoder.vocab_size, "fingerprint": encoder.fingerprint}
        stage.figures = {**open_manifest(documents)["totals"], **figures}
