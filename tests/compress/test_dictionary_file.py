from pathlib import Path

import pytest

from seqmill.compress.dictionary import Dictionary
from seqmill.compress.dictionary_file import read_dictionaries, write_dictionaries
from seqmill.errors import UserError

SINGLES = [bytes([byte]) for byte in range(256)]
TABLES = [Dictionary.from_strings([*SINGLES, b"ab", b"the "]), Dictionary.from_strings([*SINGLES, b"c" * 255])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_dictionaries(tmp_path / "dictionary.bin", TABLES, {"parse": "longest", "window": 16})
    return tmp_path / "dictionary.bin"


def test_dictionaries_come_back_with_their_header(path: Path) -> None:
    tables, header = read_dictionaries(path)
    assert [table.strings() for table in tables] == [table.strings() for table in TABLES]
    assert [table.fingerprint for table in tables] == [table.fingerprint for table in TABLES]
    assert header == {"format": 1, "parse": "longest", "strings": [258, 257], "window": 16}


def test_every_byte_that_changes_is_noticed(path: Path) -> None:
    contents = path.read_bytes()
    for place in range(0, len(contents), 61):
        path.write_bytes(contents[:place] + bytes([contents[place] ^ 1]) + contents[place + 1 :])
        with pytest.raises(UserError, match=r"is no dictionary|cut short or damaged"):
            read_dictionaries(path)


def test_a_file_that_is_cut_short_is_refused(path: Path) -> None:
    contents = path.read_bytes()
    for size in (0, 7, 8, 40, len(contents) - 1):
        path.write_bytes(contents[:size])
        with pytest.raises(UserError, match=r"is no dictionary|cut short or damaged"):
            read_dictionaries(path)
