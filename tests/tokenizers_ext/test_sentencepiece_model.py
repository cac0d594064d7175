"""Against the ids that the sentencepiece package gave for the models in data/."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.tokenizers_ext import load
from seqmill.tokenizers_ext.sentencepiece_model import _message_class, convert_model
from seqmill.tokenizers_ext.subword import SubwordEncoder

DATA = Path(__file__).parent / "data"
MODELS = ("bpe_bytes", "unigram", "unigram_bytes")


@pytest.mark.parametrize("model", MODELS)
def test_ids_equal_those_of_sentencepiece(model: str) -> None:
    expected = json.loads((DATA / f"{model}.json").read_text())
    encoder = load(DATA / f"{model}.model")
    found = encoder.encode(pa.array([row["text"] for row in expected])).to_pylist()
    assert [(row["text"], row["ids"]) for row in expected] == list(
        zip([row["text"] for row in expected], found, strict=True)
    )


def test_control_symbols_in_a_text_are_text_and_give_the_end_id_its_role() -> None:
    encoder = load(DATA / "unigram.model")
    assert encoder.special_ids == {"eos": 2, "pad": 3}
    ids = encoder.encode(pa.array(["</s><pad><ctrl>"])).to_pylist()[0]
    assert not {2, 3, 4} & set(ids)
    decoded = encoder.decode(load(DATA / "bpe_bytes.model").encode(pa.array([], pa.string())))
    assert decoded.to_pylist() == []


def test_a_model_with_byte_fallback_is_encoded_fast_and_loses_nothing() -> None:
    encoder = load(DATA / "bpe_bytes.model")
    assert isinstance(encoder, SubwordEncoder)
    assert encoder.engine == "gigatoken"
    texts = ["", " ", "  two  spaces ", "<0x41> 🎉\n\t\0", "日本語 e\u0301"]
    assert encoder.decode(encoder.encode(pa.array(texts))).to_pylist() == [text.encode() for text in texts]


def test_a_model_that_loses_bytes_is_warned_about_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "mine.model"
    path.write_bytes((DATA / "unigram.model").read_bytes())
    with caplog.at_level(logging.WARNING):
        load(path)
        load(path)
    assert [record.message.split(" comes back as ")[0] for record in caplog.records] == [
        f"{path} is not lossless: 'Plain words, 3.14 and  two spaces.\\r\\n\\tTab'"
    ]


@pytest.mark.parametrize("length", [0, 1, 100, 5_000, -1])
def test_a_truncated_model_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.model"
    path.write_bytes((DATA / "unigram.model").read_bytes()[:length])
    with pytest.raises(UserError, match=r"cut\.model: .*(cut short|no unknown piece)"):
        load(path)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("trainer_spec", "model_type", 4, r"model type 4 \(word or char\)"),
        ("trainer_spec", "treat_whitespace_as_suffix", True, "spaces as suffixes"),
        ("normalizer_spec", "escape_whitespaces", False, "spaces that are not escaped"),
    ],
)
def test_models_that_no_tokenizer_json_can_express_are_refused(
    part: str, field: str, value: object, message: str
) -> None:
    model = _message_class().FromString((DATA / "unigram.model").read_bytes())
    setattr(getattr(model, part), field, value)
    with pytest.raises(UserError, match=message):
        convert_model(model.SerializeToString())


def test_a_piece_that_occurs_twice_is_refused() -> None:
    model = _message_class().FromString((DATA / "unigram.model").read_bytes())
    model.pieces[50].piece = model.pieces[60].piece
    with pytest.raises(UserError, match="twice"):
        convert_model(model.SerializeToString())
