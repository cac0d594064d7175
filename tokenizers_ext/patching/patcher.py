"""A patcher: everything that decides where patches begin, as a folder that data carries with it.

DIR/patcher.json     settings with the bounds that were chosen, what they were chosen from, hashes, a fingerprint
DIR/scorer/          for scheme "entropy" with a scorer
DIR/tokenizer/       for scheme "bpe"
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.storage import FORMAT_VERSION, fingerprint, read_json, write_json
from seqmill.tokenizers_ext.artifact import ROUND_TRIP_SAMPLE, copy_artifact, load
from seqmill.tokenizers_ext.encoder import Encoder, as_large_binary, list_array, offsets_and_bytes
from seqmill.tokenizers_ext.patching.boundaries import (
    SPACELIKE,
    Int64s,
    Marks,
    lengths_between,
    mark_entropy,
    mark_space,
    mark_static,
    mark_tokens,
)
from seqmill.tokenizers_ext.patching.config import LONGEST_PATCH, PatchConfig
from seqmill.tokenizers_ext.patching.scorer import Scorer, copy_scorer, describe_scorer, load_scorer
from seqmill.tokenizers_ext.patching.scores import entropy_pieces
from seqmill.tokenizers_ext.token_bytes import bytes_of_ids

DESCRIPTION = "patcher.json"
SCORER, TOKENIZER = "scorer", "tokenizer"
GIVEN = "given"  # as the setting `entropies` of an artifact: they come with the documents


@dataclass(frozen=True)
class Patcher:
    """Cuts documents into patches; see `patch_lengths`."""

    config: PatchConfig  # with the bounds of its rule, not the patch size that they shall lead to
    scorer: Scorer | None = None  # for scheme "entropy"; None: entropies are given with the documents
    tokenizer: Encoder | None = None  # for scheme "bpe"

    @cached_property
    def token_lengths(self) -> Int64s:
        """Bytes of each id of the tokenizer, int64[vocab_size]."""
        assert self.tokenizer
        return np.diff(bytes_of_ids(self.tokenizer)[0])


def patch_lengths(texts: pa.Array, patcher: Patcher, entropies: pa.Array | None = None) -> pa.ListArray:
    """Bytes of every patch of every document.

    Args:
        texts: (large_)string or (large_)binary, without nulls.
        entropies: list<float16|float32|float64>, nats of each byte of each document given the bytes before it; for
            scheme "entropy" without a scorer.

    Returns:
        list<uint16>, one list a document: they add up to its bytes, and none is 0.

    Raises:
        UserError: nulls, another type, entropies that are missing or do not fit the documents, or a document that the
            tokenizer of scheme "bpe" does not cut (invalid UTF-8, or it normalises text).
    """
    texts = as_large_binary(texts)
    offsets, data = offsets_and_bytes(texts)
    data = data[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    config = patcher.config
    marks = np.zeros(len(data), np.uint8)
    schemes: dict[str, Callable[[], None]] = {
        "byte": lambda: marks.fill(1),
        "static": lambda: mark_static(offsets, config.size, marks),
        "space": lambda: mark_space(data, offsets, SPACELIKE, marks),
        "bpe": lambda: _mark_bpe(patcher, texts, offsets, marks),
        "entropy": lambda: _mark_entropy(patcher, data, offsets, entropies, marks),
    }
    schemes[config.scheme]()
    ends, lengths = lengths_between(offsets, marks, config.max_patch)
    return list_array(ends, lengths, LONGEST_PATCH + 1)


def save_patcher(
    folder: Path, config: PatchConfig, scorer: Path | None = None, calibration: Mapping[str, Any] | None = None
) -> None:
    """Write the artifact of what `config` says, with copies of what it needs.

    Args:
        config: with bounds; its tokenizer is copied.
        scorer: folder of a scorer to copy, for scheme "entropy" without given entropies.
        calibration: JSON values that say how the bounds were chosen.

    Raises:
        UserError: the tokenizer or the scorer cannot be read, or tokens do not add up to text on a sample.
    """
    parts: dict[str, Any] = {}
    if config.scheme == "bpe":
        assert config.tokenizer
        copy_artifact(Path(config.tokenizer), folder / TOKENIZER)
        encoder = load(folder / TOKENIZER)
        _require_a_cut(Patcher(config, tokenizer=encoder))
        parts[TOKENIZER] = {"kind": encoder.kind, "fingerprint": encoder.fingerprint}
        config = replace(config, tokenizer=TOKENIZER)
    if scorer is not None:
        copy_scorer(scorer, folder / SCORER)
        parts[SCORER] = describe_scorer(folder / SCORER)
        config = replace(config, model=SCORER)
    settings = {name: value for name, value in asdict(config).items() if name not in ("ngram", "target_bytes")}
    if config.entropies is not None:
        settings["entropies"] = GIVEN
    described = {"format_version": FORMAT_VERSION, "settings": settings, **parts, "calibration": calibration}
    write_json(folder / DESCRIPTION, {**described, "fingerprint": fingerprint([settings, parts])})


def describe_patcher(folder: Path) -> dict[str, Any]:
    """The contents of patcher.json.

    Raises:
        UserError: `folder` holds no patcher of this version.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} is no patcher: it has no {DESCRIPTION}; run `seqmill tokenize --patching` again")
    described: dict[str, Any] = read_json(folder / DESCRIPTION)
    if described.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder}: format version {described.get('format_version')}, this seqmill reads {FORMAT_VERSION}"
        )
    return described


def load_patcher(folder: Path) -> Patcher:
    """The patcher in `folder`.

    Raises:
        UserError: there is none, or its scorer or tokenizer is not the one it was written with.
    """
    described = describe_patcher(folder)
    scorer = tokenizer = None
    if SCORER in described:
        scorer = load_scorer(folder / SCORER)
        _require_same(folder / SCORER, described[SCORER]["sha256"], describe_scorer(folder / SCORER)["sha256"])
    if TOKENIZER in described:
        tokenizer = load(folder / TOKENIZER)
        _require_same(folder / TOKENIZER, described[TOKENIZER]["fingerprint"], tokenizer.fingerprint)
    return Patcher(PatchConfig(**described["settings"]), scorer, tokenizer)


def _require_same(path: Path, recorded: Any, found: Any) -> None:
    if recorded != found:
        raise UserError(
            f"{path}: its hash is {str(found)[:40]}..., {DESCRIPTION} records {str(recorded)[:40]}...; patches would "
            "differ from the ones on disk: restore it, or tokenize again"
        )


def _mark_entropy(
    patcher: Patcher, data: np.ndarray, offsets: Int64s, entropies: pa.Array | None, marks: Marks
) -> None:
    config = patcher.config
    theta, theta_add = (-math.inf if bound is None else bound for bound in (config.theta, config.theta_add))
    if config.target_bytes is not None:
        raise UserError("patching.target_bytes says what a bound shall lead to: choose the bound first (choose_bound)")
    for piece in entropy_pieces(data, offsets, patcher.scorer or entropies):
        mark_entropy(offsets, *piece, theta, theta_add, marks)


def _mark_bpe(patcher: Patcher, texts: pa.LargeBinaryArray, offsets: Int64s, marks: Marks) -> None:
    bad = _mark_tokens(patcher, texts, offsets, marks)
    if bad >= 0:
        raise UserError(_not_a_cut(f"document {bad} of the batch"))


def _require_a_cut(patcher: Patcher) -> None:
    sample = pa.array(ROUND_TRIP_SAMPLE, pa.large_string()).cast(pa.large_binary())
    offsets, data = offsets_and_bytes(sample)
    bad = _mark_tokens(patcher, sample, offsets, np.zeros(len(data), np.uint8))
    if bad >= 0:
        raise UserError(_not_a_cut(f"the sample {ROUND_TRIP_SAMPLE[bad]!r}"))


def _mark_tokens(patcher: Patcher, texts: pa.LargeBinaryArray, offsets: Int64s, marks: Marks) -> int:
    assert patcher.tokenizer
    ids = patcher.tokenizer.encode(texts)
    id_offsets = ids.offsets.to_numpy().astype(np.int64)
    return int(mark_tokens(ids.values.to_numpy(), id_offsets, patcher.token_lengths, offsets, marks))


def _not_a_cut(what: str) -> str:
    return (
        f"patching.tokenizer: the tokens of {what} do not add up to its bytes; patches need a tokenizer that is "
        "lossless byte by byte, as a byte-level BPE without a normaliser is"
    )
