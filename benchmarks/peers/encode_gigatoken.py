"""gigatoken by itself: from and to awkward arrays as it works inside, and from a list of strings."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward
import pyarrow as pa
from gigatoken import Tokenizer
from tokens import Codec, main
from vocabulary import without_special_tokens


def ids(encoded: Any) -> Any:
    layout = awkward.to_layout(encoded).to_ListOffsetArray64(True)
    offsets, values = layout.offsets.data, layout.content.data
    return (values[first:last] for first, last in pairwise(offsets))


def from_awkward(tokenizer: Path) -> Codec:
    native = Tokenizer.from_json(without_special_tokens(tokenizer))
    return Codec(native.encode_batch, ids, given=lambda texts: awkward.from_arrow(pa.array(texts, pa.large_string())))


def from_list(tokenizer: Path) -> Codec:
    native = Tokenizer.from_json(without_special_tokens(tokenizer))
    return Codec(native.encode_batch, ids)


if __name__ == "__main__":
    main("gigatoken", {"awkward": from_awkward, "list": from_list})
