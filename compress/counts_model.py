"""The model `counts`: how often strings begin at the places of a sample where windows may."""

import numpy as np

from seqmill.compress.substring_counts import count_substrings
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel

NODES = 1 << 20  # strings counted: 20 MB
LONGEST = 32  # bytes of a string


def counts_model(
    texts: Texts, starts: np.ndarray | None = None, nodes: int = NODES, longest: int = LONGEST, precision: int = 14
) -> TreeModel:
    """A byte model of the most frequent strings of a sample.

    Args:
        texts: the sample, such as `sample_texts` gives of Arrow columns.
        starts: int64[places], ascending: where windows begin; everywhere if None.
        nodes: strings of two bytes or more that are kept, the most frequent ones.
        longest: bytes of a string; of a longer context its end is looked at.
        precision: bits of the frequencies, 8 to 16; 2**precision must not exceed the numbers of a window.
    """
    return TreeModel(count_substrings(texts, nodes, longest, starts), longest - 1, precision)
