"""Exact substring deduplication (Lee et al. 2022, arXiv 2107.06499, section 4.1) within a memory budget.

What is marked. A window is `min_bytes` consecutive bytes of one document. Documents stand in survivor order: parts in
the manifest's order, rows in a part's. A window is a copy if the same bytes start at an earlier place: in an earlier
document, or earlier in the same one, where the two may overlap (as in a suffix array), so that "ha" * 500 keeps one
"ha". A byte is marked if some copy covers it. Every run of marked bytes is snapped inward to whole characters, and
marked no more if that leaves it shorter than `min_bytes`. What is left holds every window of the corpus at its first
place, or its bytes there are themselves copies of bytes still earlier.

How it is found. A suffix array needs 5 to 9 times the text in memory and is hard to build in pieces; a table of all
windows needs 8 to 16 times. So windows are sampled by content (winnowing: Schleimer, Wilkerson, Aiken 2003): a window
is represented by its anchor, the gram (`min_bytes / 2` bytes) in it of the least hash, the first one among equals.
Equal windows have equal anchors at equal distances, so copies meet wherever their anchors are sorted together, and
there is one anchor for about `min_bytes / 4` bytes of text.

    sample    documents part        -> anchors by hash, runs of a short period, table of documents   (one unit a part)
    find      hash range of anchors -> copies: place, windows, earlier place       (as many units as the memory needs)
    cut       documents part, copies -> documents part, spans, removed                               (one unit a part)
    collect   spans, removed        -> spans.parquet, removed.parquet                                       (one unit)

Work is linear for any text: anchors that occur once go after the sort; among those that share a gram, the windows at
one distance go through one hash table that keeps the first place of each content, so a million occurrences are a
million look-ups; runs of a short period are found where they are read. No hash is trusted: bytes decide.

    place     byte position in the corpus' part files laid end to end: orders like documents and offsets, and names the
              address of the byte in a memory map
    distance  bytes from the start of a window to its anchor
"""

from seqmill.pipeline.substrings.config import SubstringConfig
from seqmill.pipeline.substrings.stage import cut_substrings

__all__ = ["SubstringConfig", "cut_substrings"]
