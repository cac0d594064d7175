import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from seqmill.tokenizers_ext.merging.boundaries import flat_rows, segments_of
from seqmill.tokenizers_ext.merging.engine import learn_merges
from seqmill.tokenizers_ext.merging.text import remaining, text_of
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.training import add_superwords, train_bpe

TEXTS = [
    "by the way, at the end of the day it is what it is",
    "at the end of the road by the way side, don't stop at the end of it\n\nby the way",
    "one of the best of the best at the end of 2024 by  the way",
] * 3


def test_tokens_of_several_words_come_after_those_of_one_and_shorten_the_text() -> None:
    base = train_bpe([TEXTS], 300)
    longer = add_superwords(base, [pa.array(TEXTS)], 320, 10**6)
    vocab = json.loads(longer)["model"]["vocab"]
    spanning = [token for token in vocab if "Ġ" in token[1:] and token.strip("Ġ")]
    assert spanning
    assert min(vocab[token] for token in spanning) >= 300
    assert {token: id_ for token, id_ in vocab.items() if id_ < 300} == json.loads(base)["model"]["vocab"]
    count = [len(SubwordEncoder(json_).encode(pa.array(TEXTS)).flatten()) for json_ in (base, longer)]
    assert count[1] < count[0]


def test_tokenizers_cuts_the_training_text_as_merging_left_it() -> None:
    base = train_bpe([TEXTS], 300)
    longer = add_superwords(base, [pa.array(TEXTS)], 330, 10**6)
    encoder, reference = SubwordEncoder(base), Tokenizer.from_str(longer.decode())
    values, offsets = flat_rows(encoder.encode(pa.array(TEXTS)))
    text = text_of(values, segments_of(values, offsets, encoder, "superword"), np.ones(len(values), np.int64))
    merges = json.loads(longer)["model"]["merges"]
    vocab = json.loads(longer)["model"]["vocab"]
    learned = learn_merges(text, encoder.vocab_size, 30, min_count=2)
    assert [[vocab[a], vocab[b]] for a, b in merges[-len(learned) :]] == [
        [a, b] for a, b in zip(learned.left.tolist(), learned.right.tolist(), strict=True)
    ]
    ids, row_offsets = remaining(text, offsets)
    rows = [ids[a:b].tolist() for a, b in pairwise(row_offsets)]
    assert rows == [reference.encode(text, add_special_tokens=False).ids for text in TEXTS]


def test_text_beyond_the_limit_is_not_read() -> None:
    base = train_bpe([TEXTS], 300)
    some = add_superwords(base, [pa.array(TEXTS[:1])], 320, 10**6)
    assert some == add_superwords(base, [pa.array(TEXTS[:1]), pa.array(TEXTS)], 320, 5)
