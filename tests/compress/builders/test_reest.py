import itertools

import numpy as np

from seqmill.compress.builders.counts import counts
from seqmill.compress.builders.reest import cut_longest, reest, window_starts
from seqmill.compress.builders.topn import topn
from seqmill.compress.counts_model import counts_model
from seqmill.compress.dictionary import Dictionary
from seqmill.compress.texts import Texts


def build(texts: Texts, starts: np.ndarray | None) -> Dictionary:
    return counts(texts, 12, None, starts)


def build_by_model(texts: Texts, starts: np.ndarray | None) -> Dictionary:
    return topn(counts_model(texts, starts, nodes=20_000, precision=12), 12)


def windows(dictionary: Dictionary, texts: Texts) -> int:
    return len(cut_longest(dictionary, texts)[0])


def plain_starts(dictionary: Dictionary, texts: Texts) -> list[int]:
    strings, found = set(dictionary.strings()), []
    for begin, end in itertools.pairwise(texts.offsets.tolist()):
        document = texts.data[begin:end].tobytes()
        at = 0
        while at < len(document):
            found.append(begin + at)
            at += next(size for size in range(255, 0, -1) if document[at : at + size] in strings)
    return found


def test_windows_begin_where_the_longest_strings_end(documents: list[bytes]) -> None:
    texts = Texts.of([b"", *(document[:400] for document in documents[::6]), b""])
    dictionary = build(texts, None)
    assert window_starts(dictionary, texts, cut_longest).tolist() == plain_starts(dictionary, texts)


def test_three_rounds_make_windows_longer_on_text_that_was_not_seen(documents: list[bytes]) -> None:
    halves = [(document[: len(document) // 2], document[len(document) // 2 :]) for document in documents]
    seen, unseen = (Texts.of(half) for half in zip(*halves, strict=True))
    for builder in (build, build_by_model):
        first, third = reest(seen, builder, 0), reest(seen, builder, 3)
        assert len(first) == len(third) == 4096
        assert windows(third, unseen) < 0.97 * windows(first, unseen)


def test_another_parse_can_be_given(texts: Texts) -> None:
    calls = []

    def parse(dictionary: Dictionary, sample: Texts) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(dictionary))
        return cut_longest(dictionary, sample)

    assert reest(texts, build, 2, parse).fingerprint == reest(texts, build, 2).fingerprint
    assert calls == [4096, 4096]
