"""Settings of scoring that cannot work."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from seqmill.errors import UserError
from seqmill.pipeline.score_columns import ScoringConfig, encode_texts
from seqmill.tokenizers_ext.artifact import save_byte, save_subword


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling = 'max'"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"unit_bytes": 0}, "unit_bytes = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoringConfig(**settings)


def test_an_id_is_appended_only_by_a_tokenizer_that_has_one(tmp_path: Path) -> None:
    letters = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    bare = Tokenizer(BPE(letters, []))
    bare.pre_tokenizer = ByteLevel(add_prefix_space=False)
    encoder = save_subword(tmp_path, bare.to_str().encode(), {})
    with pytest.raises(UserError, match=r"some/tokenizer has no end-of-document id.*append_eos = false"):
        ScoringConfig().require_end(encoder, "some/tokenizer")
    ScoringConfig(append_eos=False).require_end(encoder, "some/tokenizer")
    ends = save_byte(tmp_path / "bytes")
    ScoringConfig().require_end(ends, "bytes")
    texts = pa.array(["ab", ""])
    assert encode_texts(ends, texts, append_eos=True).to_pylist() == [[97, 98, 256], [256]]
    assert encode_texts(ends, texts, append_eos=False).to_pylist() == [[97, 98], []]
