"""Hugging Face tokenizers: encode_batch_fast, decode_batch, BpeTrainer; and k-mers as words of fixed length."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokens import Codec, main

MOST_KMERS = 1 << 16  # a vocabulary of words is a table of strings


def batch_fast(tokenizer: Path) -> Codec:
    native = kmers(tokenizer) or Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    native.encode_special_tokens = True
    native.no_truncation()
    native.no_padding()
    return Codec(
        lambda texts: native.encode_batch_fast(texts, add_special_tokens=False),
        lambda encoded: (encoding.ids for encoding in encoded),
        decode=lambda lists: native.decode_batch(lists, skip_special_tokens=False),
        to_decode=lambda encoded: [encoding.ids for encoding in encoded],
    )


def kmers(tokenizer: Path) -> Tokenizer | None:
    """A tokenizer of k-mers with the ids of seqmill's, for documents that are multiples of k bases long."""
    described = json.loads((tokenizer / "seqmill.json").read_text()) if (tokenizer / "seqmill.json").exists() else {}
    if described.get("kind") != "kmer":
        return None
    k = described["settings"]["k"]
    if 4**k > MOST_KMERS:
        raise ValueError(f"{4**k:,} k-mers are too many for a vocabulary of words")
    first = described["vocab_size"] - 4**k
    words = {"".join(bases): first + number for number, bases in enumerate(product("ACGT", repeat=k))}
    native = Tokenizer(models.WordLevel({**words, "?": 0}, unk_token="?"))
    native.pre_tokenizer = pre_tokenizers.Split(Regex(f".{{{k}}}"), "isolated")
    native.decoder = decoders.Fuse()
    return native


def train(batches: Iterator[list[str]], vocab_size: int, out: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.encode_special_tokens = True
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(batches, trainer)
    tokenizer.save(str(out / "tokenizer.json"))


if __name__ == "__main__":
    main("tokenizers", {"": batch_fast}, train)
