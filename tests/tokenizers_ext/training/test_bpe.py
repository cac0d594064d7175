import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seqmill.errors import UserError
from seqmill.tokenizers_ext.subword import END_OF_TEXT, SubwordEncoder
from seqmill.tokenizers_ext.training import BpeConfig, train_bpe
from seqmill.tokenizers_ext.training.bpe import pre_tokenizer_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "corpus"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((EXAMPLES / "udhr").glob("*.txt"))]


def by_tokenizers(texts: list[str], vocab_size: int, split: str = "gpt2", min_count: int = 0) -> bytes:
    """The `tokenizer.json` of `tokenizers`' own trainer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer_of(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.encode_special_tokens = True
    tokenizer.train_from_iterator([texts], trainer)
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "qwen2"])
def test_a_vocabulary_of_thirty_languages_is_that_of_tokenizers_byte_for_byte(texts: list[str], split: str) -> None:
    assert train_bpe([texts], 4_000, BpeConfig(split)) == by_tokenizers(texts, 4_000, split)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text("ab c'1\n", max_size=40), max_size=6),
    merges=st.integers(0, 40),
    min_count=st.integers(1, 3),
)
@example(["a" * 30 + " " + "ab" * 12, "aaa aaaa aaaaa"], 40, 1)
def test_vocabularies_of_repetitive_text_are_those_of_tokenizers(texts: list[str], merges: int, min_count: int) -> None:
    expected = json.loads(by_tokenizers(texts, 257 + merges, min_count=min_count))
    found = json.loads(train_bpe([texts], 257 + merges, BpeConfig(min_count=min_count)))
    assert found == expected


def test_a_vocabulary_does_not_depend_on_the_order_or_batching_of_documents(texts: list[str]) -> None:
    for objective in ("frequency", "likelihood"):
        config = BpeConfig(objective=objective)
        once = train_bpe([texts], 600, config)
        assert once == train_bpe([pa.array(texts[20:]), texts[:20][::-1]], 600, config)


def test_merging_by_likelihood_gives_fewer_bits_a_byte_than_by_frequency(texts: list[str]) -> None:
    def bits(objective: str) -> float:
        encoder = SubwordEncoder(train_bpe([texts], 1_500, BpeConfig(objective=objective, min_count=2)))
        ids = encoder.encode(pa.array(texts, pa.large_string()))
        assert encoder.decode(ids).to_pylist() == [text.encode() for text in texts]
        counts = ids.flatten().value_counts().field("counts").to_numpy()
        return float(-(counts * np.log2(counts / counts.sum())).sum() / sum(len(text.encode()) for text in texts))

    assert bits("likelihood") < bits("frequency")


def test_tokens_are_no_longer_than_allowed(texts: list[str]) -> None:
    encoder = SubwordEncoder(train_bpe([texts], 1_000, BpeConfig(longest_token=3)))
    lengths = [len(encoder.decode(pa.array([[id_]], pa.list_(pa.uint16())))[0].as_py()) for id_ in range(1_000)]
    assert max(lengths) == 3


def test_transformers_loads_the_result_and_encodes_alike(texts: list[str], tmp_path: Path) -> None:
    contents = train_bpe([texts], 800)
    (tmp_path / "tokenizer.json").write_bytes(contents)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = SubwordEncoder(contents).encode(pa.array(texts[:3], pa.large_string()))
    assert ids.to_pylist() == [theirs.encode(text, add_special_tokens=False) for text in texts[:3]]


def test_impossible_settings_name_the_way_out() -> None:
    with pytest.raises(UserError, match="at least 257"):
        train_bpe([["text"]], 256)
    for settings_, message in (
        ({"split": "spaces"}, "choose one of gpt2"),
        ({"objective": "best"}, "frequency, likelihood"),
        ({"min_count": 0}, "1 or more"),
        ({"longest_token": 1}, "2 bytes or more"),
        ({"superwords_from": 100}, "257 ids or more"),
        ({"superwords_from": 1000, "split": "cl100k"}, "split = 'gpt2'"),
    ):
        with pytest.raises(UserError, match=message):
            BpeConfig(**settings_)
