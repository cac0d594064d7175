import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.dedup.characters import character_tables
from seqmill.pipeline.dedup.shingles import collapse_white_space, shingle_sets
from seqmill.pipeline.documents import utf8_buffers

from . import oracle

MIXED = st.text(st.sampled_from("aAbB_0 \n\t,.'ςΣσİéE\u0301\u00a0\u3000日本ไท한글हिन्दी🦆\u200d"), max_size=40)
TEXTS = st.lists(st.one_of(MIXED, st.text(max_size=30)), min_size=1, max_size=6)


def sets_of(texts: list[str], ngram: int) -> list[set[int]]:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    ends, hashes = shingle_sets(data, offsets, *character_tables(), ngram)
    found = [hashes[ends[d] : ends[d + 1]] for d in range(len(texts))]
    assert all(np.all(np.diff(one.astype(object)) > 0) for one in found)  # sorted and distinct
    return [{int(h) for h in one} for one in found]


@given(TEXTS, st.integers(1, 6))
def test_shingle_hashes_equal_the_oracle(texts: list[str], ngram: int) -> None:
    expected = [{oracle.hash_shingle(shingle) for shingle in oracle.shingles(text, ngram)} for text in texts]
    assert sets_of(texts, ngram) == expected


def test_words_are_folded_and_unspaced_scripts_go_by_character() -> None:
    assert oracle.words("The CAT_9's Σίσυφος, 日本 हिन्दी e\u0301") == [
        "the", "cat_9", "s", "σίσυφοσ", "日", "本", "हिन्दी", "e\u0301",
    ]  # fmt: skip
    assert sets_of(["ΣΊΣΥΦΟΣ one"], 2) == sets_of(["σίσυφος, ONE!"], 2)


def test_a_document_shorter_than_a_shingle_has_one_of_all_its_words() -> None:
    short, same, other, none = sets_of(["just two", "Just  two.", "just", "?!"], 5)
    assert short == same
    assert len(short) == 1
    assert short != other
    assert none == set()


@given(TEXTS)
def test_white_space_is_collapsed_as_split_and_join_do(texts: list[str]) -> None:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    ends, collapsed = collapse_white_space(data, offsets, character_tables()[0])
    found = [collapsed[ends[d] : ends[d + 1]].tobytes().decode() for d in range(len(texts))]
    assert found == [" ".join(text.split()) for text in texts]
