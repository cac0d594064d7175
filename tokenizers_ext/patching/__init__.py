r"""Patches: runs of bytes that a byte model reads as one, as the column `patch_lengths` list<uint16>.

A document of n bytes x[0..n-1] is cut at its starts: a set S of positions that holds 0, and at most all. Byte j begins
a patch, j in S, if

    byte      always                         abcd             a|b|c|d
    static    j mod k == 0                   abcdefgh, k = 3  abc|def|gh
    space     j < 2, or x[j-1] is spacelike  don't stop       d|on'|t |stop
              and x[j-2] is not              日本              1|3|2 bytes
    bpe       a token begins at j            don't stop       don|'t| stop
    entropy   j < 2, or H[j] > theta         threshold: high entropy
              j < 2, or H[j] - H[j-1] > a    monotonic: entropy that rises, a is theta_add
              j < 2, or both                 both
    any       j - the last start before it is max_patch: what is longer is cut into pieces of this size and a remainder

space: SpaceByte's predicate (Slagle 2024, section 3) holds for all bytes but ASCII letters and digits and the
10xxxxxx that continue a UTF-8 character; so the first byte of every other character is spacelike, the ones in it are
not. Of the two placements in use this is BLT's (Pagnoni et al. 2024, section 2.2): the patch starts *behind* the
spacelike byte, which is the last of its patch, and at 0 and 1. (SpaceByte itself runs its global block *at* that byte.)
A space thus ends a patch, and a Chinese text has one patch a character, shifted: each ends with the first byte of the
next character. DNA and base64 hold no spacelike byte at all and are cut by max_patch alone.

entropy: H[j] is the entropy in nats of the distribution of x[j] given x[0..j-1] under a byte model: here one of
n-grams with backoff (`build_scorer`), or any other whose entropies are given as a column. With H = 2 2 1 3 3 1 and
theta = 2.5 the starts are 0 1 3 4; monotonic with theta_add = 0.5 they are 0 1 3; both, 0 1 3. (BLT, section 2.3, calls
these global threshold and approximate monotonic constraint.)

All schemes but "bpe" are *incremental*: whether j begins a patch depends on x[0..j-1] alone, so that for every prefix
S(x[0..i-1]) = S(x) with the positions below i, and lengths agree in all but the last patch of the prefix. Generation
can therefore go byte by byte. "bpe" is not: the tokens of a prefix may differ from those of the whole.

Lengths add up to n, none is 0, an empty document has none. An end-of-document id lies outside of the bytes; where one
is appended, it is a patch of length 1 of its own, so that lengths add up to the ids of a document.
"""

from seqmill.tokenizers_ext.patching.calibration import add_scores, choose_bound, empty_histogram
from seqmill.tokenizers_ext.patching.config import NgramConfig, PatchConfig
from seqmill.tokenizers_ext.patching.ngrams import Run, count_runs
from seqmill.tokenizers_ext.patching.patcher import (
    Patcher,
    describe_patcher,
    load_patcher,
    patch_lengths,
    save_patcher,
)
from seqmill.tokenizers_ext.patching.scorer import Scorer, load_scorer, save_scorer
from seqmill.tokenizers_ext.patching.scores import entropy_pieces
from seqmill.tokenizers_ext.patching.witten_bell import build_scorer

__all__ = [
    "NgramConfig",
    "PatchConfig",
    "Patcher",
    "Run",
    "Scorer",
    "add_scores",
    "build_scorer",
    "choose_bound",
    "count_runs",
    "describe_patcher",
    "empty_histogram",
    "entropy_pieces",
    "load_patcher",
    "load_scorer",
    "patch_lengths",
    "save_patcher",
    "save_scorer",
]
