"""How much information a token stream carries: entropies, and the units to compare models with other tokenizers in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats per token of the empirical distribution of ids (Shannon 1948): -sum p ln p.

    A language model that knows token frequencies and nothing else cannot have a lower loss on the same tokens.

    Args:
        counts: non-negative numbers[vocabulary], occurrences of every id; zeros are allowed.

    Returns:
        nats per token; 0 when there is no token.
    """
    present = np.asarray(counts, np.float64)
    present = present[present > 0]
    if not len(present):
        return 0.0
    shares = present / present.sum()
    return float(-(shares * np.log(shares)).sum())


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """A loss in bits per byte of text, the unit that does not depend on the tokenizer.

    Args:
        nats_per_token: mean loss over `tokens` targets.
        tokens: target tokens, end-of-document ids included.
        num_bytes: bytes of the text that those tokens stand for.

    Raises:
        ValueError: there is no byte.
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes = {num_bytes}: bits per byte need at least one byte of text")
    return nats_per_token * tokens / (math.log(2) * num_bytes)


@dataclass(frozen=True)
class CodeLength:
    """What a model needs for some documents, in units that compare with any other model and tokenizer.

    An end-of-document id is a target like others, for a text is not told without its end; it stands for no byte. A
    first token that nothing stands before is not predicted: neither it nor its bytes are in `bits_per_byte`.
    """

    documents: int
    tokens: int  # end-of-document ids included
    targets: int  # tokens that were predicted
    bytes: int  # of all tokens
    target_bytes: int  # of those that were predicted
    nats: float  # losses of all targets added up

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte that was predicted.

        Raises:
            ValueError: no byte was predicted.
        """
        return bits_per_byte(self.nats / max(1, self.targets), self.targets, self.target_bytes)

    def bits_per_byte_of_all(self, vocab_size: int) -> float:
        """The same for whole documents, each first token told at log2(vocab_size) bits: a code that could be decoded.

        Raises:
            ValueError: there is no byte.
        """
        firsts = (self.tokens - self.targets) * math.log(vocab_size)
        return bits_per_byte((self.nats + firsts) / max(1, self.tokens), self.tokens, self.bytes)


def code_lengths(
    nats: Sequence[npt.NDArray[np.floating]], token_bytes: Sequence[npt.NDArray[np.integer]], sources: Sequence[str]
) -> dict[str, CodeLength]:
    """What a model needs for the documents of each source. The same whatever the order of documents.

    Args:
        nats: for every document the loss of each token, all of them or all but the first (what `models.score` gives,
            with its sign changed).
        token_bytes: for every document the bytes that each token stands for, 0 for an end-of-document id.
        sources: of every document.

    Returns:
        Source -> lengths, in the order of names.

    Raises:
        UserError: a document has another number of losses, or a loss that is no number of 0 or more.
    """
    rows: dict[str, list[tuple[int, int, int, int, float]]] = {source: [] for source in sorted(set(sources))}
    for document, (losses, sizes, source) in enumerate(zip(nats, token_bytes, sources, strict=True)):
        skipped = len(sizes) - len(losses)
        if skipped not in (0, 1):
            raise UserError(
                f"document {document} has {len(sizes)} tokens and {len(losses)} losses: one for each token is needed, "
                "or for each but the first"
            )
        if not (np.asarray(losses) >= 0).all():
            raise UserError(f"document {document} has a loss below 0 or none that is a number: give -log p in nats")
        known = int(np.sum(sizes[skipped:], dtype=np.int64))
        rows[source].append(
            (len(sizes), len(losses), known + int(np.sum(sizes[:skipped], dtype=np.int64)), known, math.fsum(losses))
        )
    found = {}
    for source, own in rows.items():
        tokens, targets, all_bytes, target_bytes, losses_of = zip(*own, strict=True)
        counts = (sum(tokens), sum(targets), sum(all_bytes), sum(target_bytes))
        found[source] = CodeLength(len(own), *counts, math.fsum(losses_of))
    return found
