import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from seqmill.errors import UserError
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.tokenizer_json import without_template_start

TEXTS = ["the cat, the dog", "", "THE  cat's <tool> x<tool>y", "été e\u0301 日本", "[CLS] the [SEP] </s>"]


def word_piece() -> Tokenizer:
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "the": 4, "cat": 5, "ca": 6, "##t": 7, ",": 8, "d": 9}
    tokenizer = Tokenizer(models.WordPiece(vocab | {"##o": 10, "##g": 11, "[": 12, "]": 13}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁the", -1.0), ("ca", -2.0), ("t", -2.5), ("a", -4.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -5.0) for letter in "<>/scdohex,é")], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.mark.parametrize("make", [word_piece, word_level, unigram])
def test_every_model_of_tokenizers_is_encoded_and_decoded_as_there(make: Callable[[], Tokenizer]) -> None:
    theirs = make()
    theirs.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False)])
    theirs.enable_truncation(2)
    theirs.enable_padding(length=9)
    encoder = SubwordEncoder(theirs.to_str().encode())
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in TEXTS[:4]]
    ids = encoder.encode(pa.array(TEXTS[:4]))
    assert ids.to_pylist() == expected
    assert encoder.decode(ids).to_pylist() == [text.encode() for text in theirs.decode_batch(expected)]
    assert encoder.decode(ids.slice(2, 1)).to_pylist() == [theirs.decode(expected[2]).encode()]


@pytest.mark.parametrize("make", [word_piece, word_level, unigram])
def test_text_that_spells_a_special_token_becomes_it_only_when_asked(make: Callable[[], Tokenizer]) -> None:
    contents = make().to_str().encode()
    name = "</s>" if make is unigram else "[SEP]"
    id_ = make().token_to_id(name)
    column = pa.array([f"the {name} cat"])
    assert id_ not in SubwordEncoder(contents).encode(column).to_pylist()[0]
    assert id_ in SubwordEncoder(contents, parse_special=True).encode(column).to_pylist()[0]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_that_are_not_special_stay_what_tokenizers_makes_of_them(tokenizer_json: bytes, flag: str) -> None:
    theirs = Tokenizer.from_str(tokenizer_json.decode())
    theirs.add_tokens([AddedToken("<tool>", **{"normalized": False, flag: True})])
    encoder = SubwordEncoder(theirs.to_str().encode())
    texts = ["a <tool> b", "a<tool>b", "<tool>", " <tool>\n<tool><tool> ", "<TOOL> <tool", "x_<tool>_"]
    assert encoder.encode(pa.array(texts)).to_pylist() == [theirs.encode(text).ids for text in texts]


def bpe(**model: Any) -> dict[str, Any]:
    described = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], **model}
    return {"version": "1.0", "added_tokens": [], "model": described}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "the file is empty"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b"[1]", 'no "model"'),
        (b'{"model": {"type": "BPE"}}', 'no "model" with a "vocab"'),
        (bpe(type="Telepathy"), "unknown tokenizer model type 'Telepathy'; known are BPE, Unigram"),
        (bpe(vocab={"a": 0, "b": 1, "ab": 1}), r"gives id 1 to 2 tokens \(\['b', 'ab'\]\)"),
        (bpe(merges=[["a", "c"]]), "the merge of 'a' and 'c' names 'c'"),
        (bpe(merges=["b a"]), "names 'ba'"),
        (bpe(merges=["a"]), "does not name two tokens"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0], ["b", 0], ["a", 1]], "unk_id": 0}}, "holds 'a' twice"),
        ({**bpe(), "added_tokens": [{"id": 1, "content": "<x>", "special": True}]}, "id 1 belongs to the token 'b'"),
        ({**bpe(), "added_tokens": [{"id": 9, "content": "<x>", "special": True}]}, "can read: missing field"),
        (bpe(dropout="yes"), "`tokenizers` can read"),
    ],
)
def test_damaged_and_ambiguous_files_are_refused(contents: bytes | dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SubwordEncoder(contents if isinstance(contents, bytes) else json.dumps(contents).encode())


def test_the_id_that_a_template_puts_before_a_text_is_known_and_is_no_part_of_a_document() -> None:
    def encoder_with(*templates: processors.PostProcessor) -> tuple[SubwordEncoder, Tokenizer]:
        tokenizer = word_piece()
        tokenizer.post_processor = processors.Sequence(list(templates)) if len(templates) != 1 else templates[0]
        return SubwordEncoder(tokenizer.to_str().encode()), tokenizer

    def template(single: str) -> processors.PostProcessor:
        return processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])

    bytes_first = processors.ByteLevel(trim_offsets=False)
    for templates, start in (
        ([template("[CLS] $A [SEP]")], 2),
        ([template("$A [SEP]")], None),
        ([bytes_first, template("[SEP] $A")], 3),
        ([bytes_first], None),
        ([], None),
        ([processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))], 2),
        ([bytes_first, processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))], 2),
    ):
        encoder, theirs = encoder_with(*templates)
        assert encoder.start_id == start
        ids = encoder.encode(pa.array(["the cat"]))[0].as_py()
        begins = [] if start is None else [start]
        assert theirs.encode("the cat").ids[: len(begins) + len(ids)] == begins + ids
        contents = theirs.to_str().encode()
        without = without_template_start(contents)
        assert (without == contents) == (start is None)
        assert Tokenizer.from_str(without.decode()).encode("the cat").ids[: len(ids)] == ids
    with pytest.raises(UserError, match=r"begins with the ids \[2, 3\]"):
        _ = encoder_with(template("[CLS] [SEP] $A"))[0].start_id


def test_an_added_token_that_tokenizers_numbers_otherwise_is_refused() -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": 9, "content": "<x>", "special": True, **flags}]
    with pytest.raises(UserError, match=r"'<x>' has id 9 in the tokenizer\.json, but `tokenizers` gives it 3"):
        SubwordEncoder(json.dumps({**bpe(), "added_tokens": added}).encode())
