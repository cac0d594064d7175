"""A Unigram vocabulary (Kudo 2018, "Subword Regularization", section 3.2), learned by `tokenizers`."""

from collections.abc import Iterable

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seqmill.tokenizers_ext.subword import END_OF_TEXT
from seqmill.tokenizers_ext.training.bpe import check_vocab_size, pre_tokenizer_of


def train_unigram(batches: Iterable[pa.Array], vocab_size: int, split: str = "gpt2") -> bytes:
    """Learn a Unigram vocabulary over bytes; returns the contents of a `tokenizer.json`.

    All 256 bytes are in the vocabulary, so every text can be encoded and the result is lossless. `tokenizers` holds all
    distinct pre-tokens and a suffix array over them in memory: bound the text, not the vocabulary.

    Args:
        batches: documents as Arrow text columns.
        vocab_size: ids wanted, the end-of-text token (id 0) included; few words may support fewer.
        split: how text is cut into pre-tokens, a key of `splitting.PATTERNS`.

    Raises:
        UserError: `vocab_size` is below 257.
    """
    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizer_of(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.encode_special_tokens = True
    tokenizer.train_from_iterator((batch.to_pylist() for batch in batches), trainer)
    return tokenizer.to_str().encode()
