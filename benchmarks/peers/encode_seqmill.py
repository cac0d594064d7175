"""seqmill itself: an Arrow column of text in, an Arrow column of ids out."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from tokens import Codec, main

from seqmill.tokenizers_ext import load, train_bpe


def arrow(tokenizer: Path) -> Codec:
    encoder = load(tokenizer)
    return Codec(
        encoder.encode,
        lambda encoded: (ids.values.to_numpy() for ids in encoded),
        given=lambda texts: pa.array(texts, pa.large_string()),
        decode=encoder.decode,
        texts=lambda decoded: (text.as_py() for text in decoded),
    )


def train(batches: Iterator[list[str]], vocab_size: int, out: Path) -> None:
    (out / "tokenizer.json").write_bytes(train_bpe(batches, vocab_size))


if __name__ == "__main__":
    main("seqmill", {"": arrow}, train)
