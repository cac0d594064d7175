from pathlib import Path

import numpy as np
import pytest

from seqmill.compress.builders import groups
from seqmill.compress.builders.groups import group_documents

RIGHTS = Path(__file__).parents[3] / "examples" / "corpus" / "udhr"


def flat(documents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(document) for document in documents]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), np.frombuffer(b"".join(documents), np.uint8)


@pytest.fixture(scope="module")
def scripts() -> tuple[list[bytes], list[int]]:
    """Paragraphs of one text in several scripts, and which script each is of."""
    texts = {name: (RIGHTS / f"{name}.txt").read_text().split("\n\n") for name in ("est", "kir", "cmn_hans")}
    pieces = [(piece.encode(), place) for place, text in enumerate(texts.values()) for piece in text if len(piece) > 40]
    order = np.random.default_rng(0).permutation(len(pieces))
    return [pieces[i][0] for i in order], [pieces[i][1] for i in order]


def test_scripts_are_told_apart(scripts: tuple[list[bytes], list[int]]) -> None:
    documents, script = scripts
    found = group_documents(*flat(documents), 3)
    assert len({(group, place) for group, place in zip(found.tolist(), script, strict=True)}) == 3


def test_groups_are_the_same_when_centres_are_found_with_some_documents(
    monkeypatch: pytest.MonkeyPatch, scripts: tuple[list[bytes], list[int]]
) -> None:
    documents, _ = scripts
    expected = group_documents(*flat(documents), 3)
    monkeypatch.setattr(groups, "MOST_FITTED", len(documents) // 2)
    found = group_documents(*flat(documents), 3)
    assert len({*zip(found.tolist(), expected.tolist(), strict=True)}) == 3


def test_one_group_and_no_documents_are_groups_too() -> None:
    assert group_documents(*flat([b"ab", b""]), 1).tolist() == [0, 0]
    assert group_documents(*flat([]), 4).tolist() == []
    assert set(group_documents(*flat([b"", b""]), 4).tolist()) == {0}
    assert group_documents(*flat([b"same", b"same"]), 3).tolist() == [0, 0]


def test_groups_do_not_depend_on_how_many_documents_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch, scripts: tuple[list[bytes], list[int]]
) -> None:
    documents, _ = scripts
    expected = group_documents(*flat(documents), 3).tolist()
    monkeypatch.setattr(groups, "AT_A_TIME", 7)
    assert group_documents(*flat(documents), 3).tolist() == expected
