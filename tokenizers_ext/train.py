"""Learning a vocabulary from text with the `tokenizers` library."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.subword import END_OF_TEXT

SMALLEST_BPE_VOCABULARY = 257  # 256 bytes and the end-of-text id


def train_bpe(batches: Iterable[list[str]], vocab_size: int) -> bytes:
    """Train a byte-level BPE with the GPT-2 splitter; returns the contents of a `tokenizer.json`.

    All 256 bytes are in the vocabulary, so every text can be encoded and the result is lossless. The last step of
    training is deterministic for a given multiset of documents.

    Args:
        batches: documents, in lists of any size.
        vocab_size: ids wanted, the end-of-text token (id 0) included; small corpora may support fewer.

    Raises:
        UserError: `vocab_size` is below 257.
    """
    if vocab_size < SMALLEST_BPE_VOCABULARY:
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size}: a byte-level BPE needs at least {SMALLEST_BPE_VOCABULARY} "
            "(256 bytes and the end-of-text id); for bytes alone use kind = 'byte'"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.encode_special_tokens = True
    tokenizer.train_from_iterator(batches, trainer)
    return tokenizer.to_str().encode()
