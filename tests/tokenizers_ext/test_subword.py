import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.engines import LINE_PATTERNS, Limits
from seqmill.tokenizers_ext.subword import SubwordEncoder

EXAMPLES = Path(__file__).parents[2] / "examples" / "corpus"


@pytest.fixture(scope="session")
def encoder(tokenizer_json: bytes) -> SubwordEncoder:
    return SubwordEncoder(tokenizer_json)


@pytest.fixture(scope="session")
def reference(tokenizer_json: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def reference_ids(reference: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Without the positions of every token, which take most of the time of long runs."""
    return [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]


def test_a_trained_tokenizer_is_encoded_by_the_fast_engine(encoder: SubwordEncoder) -> None:
    assert encoder.engine == "gigatoken"


def test_ids_equal_those_of_tokenizers_on_real_text(encoder: SubwordEncoder, reference: Tokenizer) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((EXAMPLES / "udhr").glob("*.txt"))]
    assert len(texts) == 30
    ids = encoder.encode(pa.array(texts, pa.large_string()))
    assert ids.to_pylist() == reference_ids(reference, texts)
    assert encoder.decode(ids).to_pylist() == [text.encode() for text in texts]


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(max_size=50), max_size=5), start=st.integers(0, 2))
def test_ids_equal_those_of_tokenizers_and_decode_to_the_text(
    encoder: SubwordEncoder, reference: Tokenizer, texts: list[str], start: int
) -> None:
    column = pa.array(texts, pa.large_string()).slice(start)
    ids = encoder.encode(column)
    assert ids.to_pylist() == reference_ids(reference, texts[start:])
    assert encoder.decode(ids).to_pylist() == [text.encode() for text in texts[start:]]


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(st.binary(max_size=30), max_size=4))
def test_arbitrary_bytes_come_back_from_a_byte_level_vocabulary(
    encoder: SubwordEncoder, documents: list[bytes]
) -> None:
    ids = encoder.encode(pa.array(documents, pa.large_binary()))
    assert encoder.decode(ids).to_pylist() == documents


@pytest.mark.parametrize("text", ["^" * 100_000, "a" * 100_000, " " * 100_000, "\n" * 50_000, "=" * 99_999 + "x"])
def test_long_runs_of_one_character_are_exact(encoder: SubwordEncoder, reference: Tokenizer, text: str) -> None:
    assert encoder.encode(pa.array([text])).to_pylist() == reference_ids(reference, [text])


@pytest.mark.slow
@pytest.mark.parametrize("split", ["gpt2", *LINE_PATTERNS], ids=["gpt2", "cl100k", "o200k", "qwen"])
def test_ids_equal_those_of_tokenizers_on_the_whole_demo_corpus_and_torture(tokenizer_json: bytes, split: str) -> None:
    description = json.loads(tokenizer_json)
    if split != "gpt2":
        cut = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, spell]}
    contents = json.dumps(description).encode()
    reference = Tokenizer.from_str(contents.decode())
    reference.encode_special_tokens = True
    encoder = SubwordEncoder(contents, limits=Limits(call_bytes=1 << 16))
    assert encoder.engine == "gigatoken"
    random = base64.b64encode(np.random.default_rng(1).bytes(300_000)).decode()
    runs = [
        "^" * 1_000_000,
        "a" * 1_000_000,
        "👩\u200d👩\u200d👧\u200d👦" * 5_000,
        "\0" * 50_000,
        random,
        " \n" * 50_000,
    ]
    every_character = "".join(f"a{chr(code)}b {chr(code)}\n" for code in range(0x30000) if not 0xD800 <= code < 0xE000)
    texts = [*demo_texts(), *runs, every_character]
    assert len(texts) > 3_000
    ids = encoder.encode(pa.array(texts, pa.large_string()))
    for text, found, wanted in zip(texts, ids.to_pylist(), reference_ids(reference, texts), strict=True):
        assert found == wanted, text[:80]
    assert encoder.decode(ids).to_pylist() == [text.encode() for text in texts]


def demo_texts() -> list[str]:
    texts = [json.loads(line)["text"] for line in (EXAMPLES / "jargon.jsonl").read_text().splitlines()]
    texts += [
        json.loads(line)["text"] for line in gzip.decompress((EXAMPLES / "sotu.jsonl.gz").read_bytes()).splitlines()
    ]
    texts += [path.read_text(encoding="utf-8") for path in sorted((EXAMPLES / "udhr").glob("*.txt"))]
    for table in (pq.read_table(EXAMPLES / "poems.parquet"), pa.ipc.open_file(EXAMPLES / "code.arrow").read_all()):
        texts += table["text"].to_pylist()
    return texts


def test_lone_continuation_bytes_come_back(encoder: SubwordEncoder) -> None:
    documents = [b"\x80", b"a\xbf\n\xc3", b"\xe6\x97" * 1000, b"\xf0\x9f\x91" + b"\n" * 9, bytes(range(256)) * 50]
    assert encoder.decode(encoder.encode(pa.array(documents))).to_pylist() == documents


def test_text_that_spells_the_end_token_never_becomes_it(encoder: SubwordEncoder) -> None:
    ids = encoder.encode(pa.array(["a<|endoftext|>b"]))
    assert encoder.special_ids["eos"] not in ids.to_pylist()[0]
    assert encoder.decode(ids).to_pylist() == [b"a<|endoftext|>b"]


def test_the_end_id_decodes_to_nothing(encoder: SubwordEncoder) -> None:
    ids = pa.array([[encoder.special_ids["eos"]]], pa.list_(pa.uint16()))
    assert encoder.decode(ids).to_pylist() == [b""]


def test_a_tokenizer_that_the_fast_engine_refuses_is_encoded_by_tokenizers() -> None:
    words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = SubwordEncoder(words.to_str().encode())
    assert encoder.engine == "tokenizers"
    assert encoder.encode(pa.array(["the cat", "", "dog the"])).to_pylist() == [[0, 1], [], [2, 0]]


def test_no_documents_give_no_ids(encoder: SubwordEncoder) -> None:
    assert encoder.encode(pa.array([], pa.large_string())).to_pylist() == []


def test_large_vocabularies_use_four_bytes(tokenizer_json: bytes) -> None:
    description = json.loads(tokenizer_json)
    vocab = description["model"]["vocab"]
    vocab.update({f"filler{k}": len(vocab) + k for k in range(70_000 - len(vocab))})
    encoder = SubwordEncoder(json.dumps(description).encode())
    assert encoder.vocab_size == 70_000
    assert encoder.encode(pa.array(["the fox"])).type == pa.list_(pa.uint32())


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="not a tokenizer"):
        SubwordEncoder(b'{"model": 3}')


def test_an_id_outside_the_vocabulary_is_refused(encoder: SubwordEncoder) -> None:
    with pytest.raises(UserError, match="outside the vocabulary"):
        encoder.decode(pa.array([[encoder.vocab_size]], pa.list_(pa.uint16())))
