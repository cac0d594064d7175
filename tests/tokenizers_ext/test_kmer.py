"""K-mers against a slow version that reads as the definition does."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext import KmerConfig, load, save_kmer
from seqmill.tokenizers_ext.kmer import FIRST_MARK, KmerEncoder

CONFIGS = st.builds(
    lambda k, stride, frame, remainder, turned: KmerConfig(
        k,
        stride and min(stride, k),
        frame % (min(stride, k) if stride else k),
        "nucleotide" if stride else remainder,
        turned,
    ),
    st.integers(1, 7),
    st.none() | st.integers(1, 7),
    st.integers(0, 6),
    st.sampled_from(["nucleotide", "pad"]),
    st.booleans(),
)
DNA = st.text(st.sampled_from("ACGTACGTACGTNacgtRYU\n"), max_size=60).map(str.encode)
COMPLEMENT = bytes.maketrans(b"ACGTRYKMBVDHacgtrykmbvdh", b"TGCAYRMKVBHDtgcayrmkvbhd")


def expected(document: bytes, config: KmerConfig) -> list[int]:
    """Position by position: the ids that begin there, and what they cover."""
    if config.reverse_complement:
        document = document.translate(COMPLEMENT)[::-1]
    ids: list[int] = []
    covered = 0
    for place in range(len(document)):
        piece = document[place : place + config.k]
        on_grid = place >= config.frame and (place - config.frame) % config.step == 0
        if on_grid and len(piece) == config.k and set(piece) <= set(b"ACGT"):
            ids.append(kmer_id(piece, config))
            covered = place + config.k
        elif place >= covered:
            bases = len(piece) - len(piece.lstrip(b"ACGT"))
            if config.remainder == "pad" and on_grid and bases >= 2:
                ids += [kmer_id(piece[:bases] + b"A" * (config.k - bases), config), FIRST_MARK + bases - 1]
                covered = place + bases
            else:
                ids.append(document[place])
                covered = place + 1
    return ids


def kmer_id(piece: bytes, config: KmerConfig) -> int:
    return config.first_kmer + int("".join(str(b"ACGT".index(base)) for base in piece), 4)


@settings(max_examples=400, deadline=None)
@given(st.lists(DNA | st.binary(max_size=20), max_size=4), CONFIGS, st.integers(0, 2))
def test_ids_equal_the_definition_and_come_back(documents: list[bytes], config: KmerConfig, start: int) -> None:
    encoder = KmerEncoder(config)
    ids = encoder.encode(pa.array(documents, pa.large_binary()).slice(start))
    assert ids.to_pylist() == [expected(document, config) for document in documents[start:]]
    assert encoder.decode(ids).to_pylist() == documents[start:]
    assert encoder.decode(ids.slice(1)).to_pylist() == documents[start:][1:]


def test_the_example_of_the_module_holds() -> None:
    def shown(document: bytes, **config: object) -> list[object]:
        encoder = KmerEncoder(KmerConfig(3, **config))  # type: ignore[arg-type]
        names = {encoder.config.first_kmer + n: "".join("ACGT"[n >> s & 3] for s in (4, 2, 0)) for n in range(64)}
        marks = {FIRST_MARK: "<1>", FIRST_MARK + 1: "<2>"}
        return [names.get(i) or marks.get(i) or chr(i) for i in encoder.encode(pa.array([document]))[0].as_py()]

    assert shown(b"ACGTNACG") == ["ACG", "T", "N", "A", "C", "G"]
    assert shown(b"ACGTACGT") == ["ACG", "TAC", "G", "T"]
    assert shown(b"ACGTACGT", remainder="pad") == ["ACG", "TAC", "GTA", "<2>"]
    assert shown(b"ACGTACGT", stride=2) == ["ACG", "GTA", "ACG", "T"]
    assert shown(b"ACGTACGT", frame=2) == ["A", "C", "GTA", "CGT"]
    assert shown(b"AACGT", reverse_complement=True) == ["ACG", "T", "T"]


@pytest.mark.parametrize(("k", "bits"), [(7, 16), (8, 32)])
def test_ids_have_sixteen_bits_exactly_when_the_vocabulary_fits(k: int, bits: int) -> None:
    encoder = KmerEncoder(KmerConfig(k))
    assert encoder.vocab_size == 4**k + 258 + k - 1
    assert encoder.encode(pa.array(["ACGTACGT"])).type == pa.list_(pa.uint16() if bits == 16 else pa.uint32())


def test_special_ids_decode_to_nothing_and_end_an_overlap() -> None:
    encoder = KmerEncoder(KmerConfig(3, 1))
    ids = encoder.encode(pa.array(["ACGT", "ACG"])).to_pylist()
    joined = pa.array([[*ids[0], encoder.special_ids["eos"], *ids[1]]], pa.list_(pa.uint16()))
    assert encoder.decode(joined).to_pylist() == [b"ACGTACG"]
    with pytest.raises(UserError, match="outside the vocabulary"):
        encoder.decode(pa.array([[encoder.vocab_size]], pa.list_(pa.uint16())))


def test_an_artifact_keeps_its_settings(tmp_path: Path) -> None:
    config = KmerConfig(5, None, 2, "pad", True)
    saved = save_kmer(tmp_path, config)
    loaded = load(tmp_path)
    assert (loaded.kind, loaded.fingerprint, loaded.vocab_size) == ("kmer", saved.fingerprint, saved.vocab_size)
    text = pa.array(["".join(np.random.default_rng(1).choice(list("ACGTN"), 300, p=[0.24] * 4 + [0.04]))])
    assert loaded.encode(text) == saved.encode(text)
    assert KmerEncoder(KmerConfig(5, None, 2, "pad", False)).fingerprint != saved.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": 13}, "between 1 and 12"),
        ({"k": 4, "stride": 5}, "bases between k-mers would be lost"),
        ({"k": 4, "frame": 4}, "frame = 4: from 0 to the stride less one, 3"),
        ({"remainder": "drop"}, "choose one of nucleotide, pad"),
        ({"stride": 2, "remainder": "pad"}, "do not overlap"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KmerConfig(**settings)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(DNA, max_size=4), config=CONFIGS)
def test_the_bytes_that_ids_stand_for_add_up_to_the_document(documents: list[bytes], config: KmerConfig) -> None:
    encoder = KmerEncoder(config)
    ids = encoder.encode(pa.array(documents, pa.large_binary()))
    added = encoder.bytes_added(ids).to_pylist()
    assert [len(row) for row in added] == [len(row) for row in ids.to_pylist()]
    assert [sum(row) for row in added] == [len(document) for document in documents]
    for row, counts in zip(ids.to_pylist(), added, strict=True):
        for id_, count in zip(row, counts, strict=True):
            assert (count == 0) == (FIRST_MARK <= id_ < config.first_kmer)


def test_a_filled_up_k_mer_counts_its_own_bases() -> None:
    encoder = KmerEncoder(KmerConfig(3, remainder="pad"))
    ids = encoder.encode(pa.array([b"ACGTACGTN"]))
    assert encoder.bytes_added(ids).to_pylist() == [[3, 3, 2, 0, 1]]
