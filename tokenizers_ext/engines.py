"""What turns text into ids: gigatoken where it gives the same ids as `tokenizers`, else `tokenizers`.

Both take text as Arrow buffers and give flat ids. Neither gets more than a few megabytes in one call, so that what
they hold besides the result does not grow with the batch.
"""

import logging
import multiprocessing
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa
from tokenizers import Tokenizer

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.gather import binary_array
from seqmill.tokenizers_ext.patterns import CL100K_PATTERN, O200K_PATTERN, QWEN2_PATTERN
from seqmill.tokenizers_ext.tokenizer_json import Description
from seqmill.tokenizers_ext.torture import torture_sample

logger = logging.getLogger(__name__)

# In these no match holds a letter and a line break behind it, and none looks from one to the other.
LINE_PATTERNS = (CL100K_PATTERN, O200K_PATTERN, QWEN2_PATTERN)
LINE_BREAK = re.compile(rb"[A-Za-z](?=\n)")
CACHE_PER_BYTE = 6  # bytes: the most that a byte of text added to gigatoken's caches, measured on random words

Flat = tuple[np.ndarray, np.ndarray]  # offsets int64[documents + 1], starting at 0, into ids


@dataclass(frozen=True)
class Limits:
    """How much an engine holds at once; ids never depend on it."""

    call_bytes: int = 64 << 20  # text that gigatoken gets in one call: its ids have 4 bytes, about 1.2 a byte of text
    object_bytes: int = 8 << 20  # text that is held as Python strings at a time, for `tokenizers`
    object_documents: int = 2_000  # the same in documents
    look_bytes: int = 128 << 20  # text after which gigatoken's caches are looked at
    cache_bytes: int = 1 << 30  # growth of the process's memory at which gigatoken is built anew


class Engine(Protocol):
    """Encodes documents that fit into one call."""

    @property
    def name(self) -> str: ...

    @property
    def most_bytes(self) -> int:
        """Text in one call, unless one document is longer."""
        ...

    @property
    def most_documents(self) -> int: ...

    def encode(self, offsets: np.ndarray, data: np.ndarray) -> Flat:
        """Ids uint32 of documents given by offsets int64[documents + 1] into bytes uint8[...]."""
        ...


def choose_engine(description: Description, reference: Tokenizer, parse_special: bool, limits: Limits) -> Engine:
    """gigatoken if it agrees with `tokenizers` on the torture sample, else `tokenizers`.

    Args:
        description: the tokenizer, for gigatoken.
        reference: the same in `tokenizers`.
    """
    slow = ReferenceEngine(reference, limits)
    sample = offsets_and_bytes(pa.array(torture_sample(description), pa.large_string()).cast(pa.large_binary()))
    try:
        fast = NativeEngine(description, parse_special, limits)
        both = [encode_within(engine, *sample, np.uint32, by_lines=False) for engine in (slow, fast)]
        agree = all(np.array_equal(a, b) for a, b in zip(*both, strict=True))
    except Exception as error:  # an unsupported tokenizer may fail in any way: the reference takes over
        logger.info("gigatoken does not take this tokenizer (%s); encoding with tokenizers", error)
        return slow
    if not agree:
        logger.warning("gigatoken gives other ids than tokenizers for this tokenizer; encoding with tokenizers")
    return fast if agree else slow


class NativeEngine:
    """gigatoken, built anew when its caches have grown large: it remembers every word it meets and forgets none.

    It encodes on all cores, or on one in a worker process, where others are at work (gigatoken sees to that).
    """

    name = "gigatoken"

    def __init__(self, description: Description, parse_special: bool, limits: Limits) -> None:
        """Without the special added tokens, no text becomes one."""
        from gigatoken import Tokenizer as FastTokenizer

        added = [token for token in description["added_tokens"] if parse_special or not token["special"]]
        self._seen = self._assumed = 0  # bytes of text since the last look, and of caches at the worst
        self._resident = 0  # bytes of this process when it was built
        self._build = partial(FastTokenizer.from_json, orjson.dumps({**description, "added_tokens": added}))
        self._limits = limits
        self.most_bytes, self.most_documents = limits.call_bytes, limits.call_bytes
        self._renew()

    def encode(self, offsets: np.ndarray, data: np.ndarray) -> Flat:
        """See `Engine.encode`; the buffers of text and ids are shared with gigatoken, not copied."""
        from awkward import Array, contents, index

        if self._seen >= self._limits.look_bytes:
            self._look()
        self._seen += int(offsets[-1] - offsets[0])
        characters = contents.NumpyArray(data, parameters={"__array__": "byte"})
        documents = contents.ListOffsetArray(index.Index64(offsets), characters, parameters={"__array__": "bytestring"})
        ids = self._native.encode_batch(Array(documents)).layout.to_ListOffsetArray64(True)
        ends = np.asarray(ids.offsets)
        return ends, np.asarray(ids.content.data)[: ends[-1]]

    def _look(self) -> None:
        """Forget the caches if memory has grown much; where the system does not say, assume the worst."""
        self._assumed += CACHE_PER_BYTE * self._seen
        self._seen = 0
        now = resident_bytes()
        if (now - self._resident if now else self._assumed) > self._limits.cache_bytes:
            self._renew()

    def _renew(self) -> None:
        self._native = self._build()  # a thread that still encodes with the old one keeps it
        self._seen = self._assumed = 0
        self._resident = resident_bytes()


class ReferenceEngine:
    """`tokenizers`: slower, and through Python strings and lists, of which few are held at a time."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self.most_bytes, self.most_documents = limits.object_bytes, limits.object_documents
        if multiprocessing.parent_process() is not None:  # a worker: others use the other cores
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def encode(self, offsets: np.ndarray, data: np.ndarray) -> Flat:
        """See `Engine.encode`."""
        strings = text_array(offsets, data).to_pylist()
        encodings = self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)
        ends = np.concatenate([[0], np.cumsum([len(encoding) for encoding in encodings], dtype=np.int64)])
        ids = np.empty(ends[-1], np.uint32)
        for k, encoding in enumerate(encodings):
            ids[ends[k] : ends[k + 1]] = encoding.ids
        return ends, ids


def encode_within(engine: Engine, offsets: np.ndarray, data: np.ndarray, type_: type, by_lines: bool) -> Flat:
    """Ids of any amount of text, in calls that keep to the engine's limits.

    Args:
        offsets: int64[documents + 1] into `data`, at least one document.
        type_: of the ids, np.uint16 or np.uint32.
        by_lines: documents longer than a call may be cut where a line ends in a letter (`can_cut_lines`).
    """
    borders, firsts = offsets, np.arange(len(offsets))
    if by_lines and np.diff(offsets).max() > engine.most_bytes:
        borders, firsts = _cut_long_documents(offsets, data, engine.most_bytes)
    counts: list[np.ndarray] = []
    ids: np.ndarray = np.empty(0, type_)
    filled = 0
    for first, stop in _calls(borders, engine):
        ends, values = engine.encode(borders[first : stop + 1], data)
        counts.append(np.diff(ends))
        if stop - first == len(borders) - 1 and values.dtype == type_:
            return ends[firsts], values
        share = (borders[stop] - borders[0]) / (borders[-1] - borders[0] or 1)
        ids = _with_room(ids, filled, filled + len(values), share)
        ids[filled : filled + len(values)] = values  # narrowed while they are copied
        filled += len(values)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return ends[firsts], ids[:filled]


def can_cut_lines(description: Description, parse_special: bool) -> bool:
    r"""Whether a document may be encoded in two parts, cut between an ASCII letter and the line break behind it.

    It may if the text is matched by one of the known patterns: none of their matches holds a letter and then a line
    break, so a match ends at the cut whether or not text follows, and the next begins there. None looks ahead over the
    cut either: (?!\S) and what ends in a line break follow white space or punctuation, not a letter. NFC composes
    neither a letter with a line break nor over it. Added tokens must not hold line breaks or take up space around.
    """
    normalizer = description.get("normalizer") or {"type": "NFC"}
    steps = description.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    byte_level = {"add_prefix_space": True, "use_regex": True, **steps[-1]}
    split = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in LINE_PATTERNS
    ]
    known = byte_level["use_regex"] if len(steps) == 1 else steps[:-1] in [[one] for one in split]
    return bool(
        description["model"]["type"] == "BPE"
        and normalizer["type"] == "NFC"
        and byte_level.get("type") == "ByteLevel"
        and not byte_level["add_prefix_space"]
        and known
        and (len(steps) == 1 or not byte_level["use_regex"])
        and not any(
            token["lstrip"] or token["rstrip"] or "\n" in token["content"]
            for token in description["added_tokens"]
            if parse_special or not token["special"]
        )
    )


def _cut_long_documents(offsets: np.ndarray, data: np.ndarray, most_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Borders of pieces int64[pieces + 1], and for each document, and behind the last, its first piece.

    Offsets 0, 3, 20 cut at 10 and 16 give the borders 0, 3, 10, 16, 20; the documents begin at pieces 0, 1 (4 is none).
    """
    long = np.flatnonzero(np.diff(offsets) > most_bytes)
    cuts = [cut for k in long for cut in _line_ends(data, int(offsets[k]), int(offsets[k + 1]), most_bytes)]
    inside = np.array(cuts, np.int64)
    return np.sort(np.concatenate([offsets, inside])), np.arange(len(offsets)) + np.searchsorted(inside, offsets)


def _line_ends(data: np.ndarray, start: int, end: int, most_bytes: int) -> Iterator[int]:
    """The last border in every `most_bytes`, or the next one where there is none."""
    while end - start > most_bytes:
        found = LINE_BREAK.search(data.data, start + most_bytes - most_bytes // 16, end)
        if not found:
            return
        start = found.end()
        yield start


def _calls(borders: np.ndarray, engine: Engine) -> Iterator[tuple[int, int]]:
    """Ranges of documents, each of at least one and otherwise within the limits of a call."""
    first, last = 0, len(borders) - 1
    while first < last:
        fitting = int(np.searchsorted(borders, borders[first] + engine.most_bytes, "right")) - 1
        stop = min(max(fitting, first + 1), first + engine.most_documents, last)
        yield first, stop
        first = stop


def _with_room(ids: np.ndarray, filled: int, needed: int, share: float) -> np.ndarray:
    """The same array with room for `needed` ids, which come from a `share` of the text: made for all of it, and a few
    more, so that ids are hardly ever moved."""
    if needed <= len(ids):
        return ids
    wanted = needed if share >= 1 else int(needed / share * 1.03) + 1
    # Arrow keeps the pages that it had before; new ones would cost as much as all of the copying.
    room = np.frombuffer(pa.allocate_buffer(wanted * ids.itemsize), ids.dtype)
    room[:filled] = ids[:filled]
    return room


def text_array(offsets: np.ndarray, data: np.ndarray) -> pa.LargeStringArray:
    """Documents as strings, without a copy.

    Raises:
        UserError: bytes that are no UTF-8.
    """
    try:
        return binary_array(offsets, data).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise UserError(f"this tokenizer takes valid UTF-8 only ({error}); use a byte tokenizer") from error


def resident_bytes() -> int:
    """Memory of this process, or 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
