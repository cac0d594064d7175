"""Verbs of tokenizers."""

from typing import TYPE_CHECKING, Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Stage, Workers, stage_of

if TYPE_CHECKING:
    from seqmill.pipeline.train_tokenizer import TokenizerConfig

SampleBytes = Annotated[int, typer.Option(help="Text to learn from, at most.")]
SourceAlpha = Annotated[
    float, typer.Option(help="A source of b bytes gets a part of the sample in proportion to b ** this.")
]

app = typer.Typer(help="Make tokenizers.", no_args_is_help=True, rich_markup_mode=None)


@app.command("train")
def tokenizer_train(
    inputs: Inputs,
    out: Out,
    kind: Annotated[str, typer.Option(help="bpe, unigram, merged, byte or kmer.")] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Ids to learn, the end-of-text id included.")] = 32_768,
    split: Annotated[str, typer.Option(help="What no token crosses: gpt2, cl100k, qwen2 or word.")] = "gpt2",
    objective: Annotated[
        str, typer.Option(help="What a BPE's merges maximise: frequency or likelihood.")
    ] = "frequency",
    min_count: Annotated[
        int, typer.Option(help="Occurrences that a merge or substring needs; 2 at least but for a BPE.")
    ] = 1,
    superwords_from: Annotated[
        int | None, typer.Option(help="Ids of words; later merges of a BPE may join words.")
    ] = None,
    sample_bytes: SampleBytes = 1_000_000_000,
    source_alpha: SourceAlpha = 1.0,
    memory_mb: Annotated[int, typer.Option(help="Memory for learning; over it rare words are left out.")] = 2048,
    base: Annotated[str | None, typer.Option(help="Tokenizer whose ids are merged further, for kind merged.")] = None,
    merges: Annotated[int, typer.Option(help="Ids that kind merged adds.")] = 10_000,
    rule: Annotated[str, typer.Option(help="What a merged id may cover: gpt2, word, superword or none.")] = "word",
    k: Annotated[int, typer.Option("--k", help="Bases of a k-mer.")] = 6,
    stride: Annotated[int | None, typer.Option(help="Bases from one k-mer to the next; default: k.")] = None,
    frame: Annotated[int, typer.Option(help="Where k-mers begin, modulo the stride.")] = 0,
    remainder: Annotated[str, typer.Option(help="Bases behind the last k-mer: nucleotide or pad.")] = "nucleotide",
    reverse_complement: Annotated[bool, typer.Option(help="Encode the other strand of DNA.")] = False,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn a vocabulary from documents."""
    from seqmill.pipeline.train_tokenizer import MergedConfig, TokenizerConfig
    from seqmill.tokenizers_ext import BpeConfig, KmerConfig, UnigramConfig

    config = TokenizerConfig(
        kind=kind,
        vocab_size=vocab_size,
        sample_bytes=sample_bytes,
        source_alpha=source_alpha,
        memory_mb=memory_mb,
        bpe=BpeConfig(split, objective, min_count, superwords_from=superwords_from),
        unigram=UnigramConfig(split, min_count=max(2, min_count)),
        merged=MergedConfig(base, merges, rule, max(2, min_count)),
        kmer=KmerConfig(k, stride, frame, remainder, reverse_complement),
    )
    with stage_of("tokenizer", out, executor, workers, address, quiet, as_json) as stage:
        _make(stage, inputs, config)


@app.command("build")
def tokenizer_build(
    inputs: Inputs,
    out: Out,
    kind: Annotated[str, typer.Option(help="equal-info: windows of equal information.")] = "equal-info",
    window: Annotated[int, typer.Option(help="Bits of a window, 8 to 20: 2 ** window strings.")] = 16,
    builder: Annotated[str, typer.Option(help="How strings are chosen: pairs, counts, topn or stopcell.")] = "pairs",
    model: Annotated[
        str, typer.Option(help="What topn and stopcell ask for probabilities: counts, ngram or transformer.")
    ] = "counts",
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of choosing again by the sample's windows; default 5 of pairs, else 3.")
    ] = None,
    parse: Annotated[str, typer.Option(help="The longest string first, or the fewest windows.")] = "longest",
    tables: Annotated[int, typer.Option(help="Dictionaries, one for each group of similar documents.")] = 1,
    byte_model: Annotated[str | None, typer.Option(help="A transformer that was trained before.")] = None,
    byte_model_preset: Annotated[
        str, typer.Option(help="The transformer to train: bytes-0.2m, bytes-0.8m or bytes-3m.")
    ] = "bytes-0.8m",
    byte_model_steps: Annotated[int, typer.Option(help="Updates of its training.")] = 4000,
    device: Annotated[str, typer.Option(help="Of its training: auto, cpu or cuda.")] = "auto",
    sample_bytes: SampleBytes = 1_000_000_000,
    source_alpha: SourceAlpha = 1.0,
    memory_mb: Annotated[int, typer.Option(help="Memory for building; a smaller sample fits less.")] = 2048,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a dictionary from documents."""
    from seqmill.errors import UserError
    from seqmill.pipeline.build_tokenizer import EqualInfoConfig
    from seqmill.pipeline.model_steps import ByteModelConfig
    from seqmill.pipeline.train_tokenizer import TokenizerConfig

    if kind != "equal-info":
        raise UserError(f"--kind {kind}: `tokenizer build` makes equal-info; `tokenizer train` makes the others")
    transformer = ByteModelConfig(byte_model_preset, byte_model_steps, device=device)
    config = TokenizerConfig(
        kind=kind,
        sample_bytes=sample_bytes,
        source_alpha=source_alpha,
        memory_mb=memory_mb,
        equal_info=EqualInfoConfig(window, builder, model, rounds, parse, tables, byte_model, transformer),
    )
    with stage_of("tokenizer", out, executor, workers, address, quiet, as_json) as stage:
        _make(stage, inputs, config)


def _make(stage: Stage, inputs: list[str], config: "TokenizerConfig") -> None:
    """Make the tokenizer of a stage's documents, and tell its figures."""
    from seqmill.manifest import open_manifest
    from seqmill.pipeline.train_tokenizer import train_tokenizer

    documents = stage.documents(inputs)
    encoder = train_tokenizer(documents, config, stage.out, stage.executor, stage.progress)
    figures = {"kind": encoder.kind, "vocab_size": encoder.vocab_size, "fingerprint": encoder.fingerprint}
    stage.figures = {**open_manifest(documents)["totals"], **figures}
