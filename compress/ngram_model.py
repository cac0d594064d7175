"""The model `ngram`: bytes by the last 1 to 6 before them, in integers throughout.

The n-grams are counted exactly, in a tree rather than a table of hashes, so that no two contexts are ever mixed up.
"""

from seqmill.compress.substring_counts import count_substrings
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel
from seqmill.errors import UserError

NODES = 1 << 21  # n-grams counted: 40 MB
MOST_ORDER = 6


def ngram_model(texts: Texts, order: int = 4, nodes: int = NODES, precision: int = 14) -> TreeModel:
    """A byte model of contexts of up to `order` bytes, wherever they stand.

    Args:
        texts: the sample, such as `sample_texts` gives of Arrow columns.
        order: bytes of a context, 1 to 6.
        nodes: n-grams of two bytes or more that are kept, the most frequent ones.
        precision: bits of the frequencies, 8 to 16.

    Raises:
        UserError: order or precision is out of range.
    """
    if not 1 <= order <= MOST_ORDER:
        raise UserError(f"order = {order}: 1 to {MOST_ORDER} bytes of context are possible")
    return TreeModel(count_substrings(texts, nodes, order + 1), order, precision)
