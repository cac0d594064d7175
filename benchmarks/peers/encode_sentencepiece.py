"""sentencepiece: its own BPE with byte fallback, which keeps white space as it is."""

from collections.abc import Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokens import THREADS, Codec, main

MODEL = "sentencepiece.model"


def batch(tokenizer: Path) -> Codec:
    native = SentencePieceProcessor(model_file=str(tokenizer / MODEL))
    return Codec(
        lambda texts: native.encode(texts, num_threads=THREADS),
        lambda encoded: encoded,
        decode=lambda lists: native.decode(lists, num_threads=THREADS),
    )


def train(batches: Iterator[list[str]], vocab_size: int, out: Path) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=(line for texts in batches for text in texts for line in text.splitlines()),
        model_prefix=str(out / MODEL.removesuffix(".model")),
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=THREADS,
        minloglevel=2,
    )


if __name__ == "__main__":
    main("sentencepiece", {"": batch}, train)
