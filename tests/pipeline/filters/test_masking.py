import sys
from typing import Any

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.filters import masking
from seqmill.pipeline.filters.config import Masking


def masked(text: str, kind: str, **settings: Any) -> str:
    column = pa.array(["nothing here", text, ""], pa.large_string())
    done = masking.mask(column, kind, Masking(kinds=(kind,), **settings))
    assert done.text[0].as_py() == "nothing here"
    after = done.text[1].as_py()
    grown = done.inserted_bytes - done.removed_bytes
    assert grown.tolist() == [0, len(after.encode()) - len(text.encode()), 0]
    placeholder = getattr(Masking(**settings), kind)
    assert done.items.tolist() == [0, after.count(placeholder) - text.count(placeholder), 0]
    return str(after)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Ann.Lee+x@mail.example.co.uk.", "write to <EMAIL>."),
        ("é<a@b.de>, c_d@e-f.org; x", "é<<EMAIL>>, <EMAIL>; x"),
        ("@handle, a@b, a @ b.de, 5@6", "@handle, a@b, a @ b.de, 5@6"),
        ("日本a@b.jp日本", "日本<EMAIL>日本"),
    ],
)
def test_email_addresses_are_masked(text: str, expected: str) -> None:
    assert masked(text, "email") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 8.8.8.8, and 1.1.1.1.", "from <IP>, and <IP>."),
        ("local 192.168.0.1 10.0.0.1 127.0.0.1 203.0.113.7", "local 192.168.0.1 10.0.0.1 127.0.0.1 203.0.113.7"),
        ("version 1.2.3.4.5, 999.8.8.8, v8.8.8.8, 8.8.8.8a", "version 1.2.3.4.5, 999.8.8.8, v8.8.8.8, 8.8.8.8a"),
        ("[2001:4860:4860::8888]:53", "[<IP>]:53"),
        ("fe80::1 ::1 2001:db8::1 std::vector Bed::Ada 12:30:45 ::", None),
        ("2a00:1450:4001:0:0:0:0:200e é", "<IP> é"),
    ],
)
def test_public_ip_addresses_are_masked(text: str, expected: str | None) -> None:
    assert masked(text, "ip") == (expected or text)


def test_private_addresses_are_masked_on_request() -> None:
    text = "10.0.0.1 fe80::1 Bed::Ada 12:30:45"
    assert masked(text, "ip", public_ips_only=False) == "<IP> <IP> Bed::Ada 12:30:45"


@pytest.mark.parametrize(
    ("text", "regions", "expected"),
    [
        ("call +49 30 90227-2000 now", (), "call <PHONE> now"),
        ("+1 (212) 736-5000, +442079460018", (), "<PHONE>, <PHONE>"),
        ("+1 000 000 0000 or +999 1234567", (), None),  # no numbering plan has them
        ("(212) 736-5000", (), None),
        ("(212) 736-5000, é 030 902272000", ("US", "DE"), "<PHONE>, é <PHONE>"),
        ("in 2019, 1234567 and 3.14159265358", ("US",), None),
    ],
)
def test_valid_phone_numbers_are_masked(text: str, regions: tuple[str, ...], expected: str | None) -> None:
    assert masked(text, "phone", phone_regions=regions) == (expected or text)


def test_placeholders_are_taken_literally() -> None:
    assert masked("x a@b.de y", "email", email=r"\0\1[mail]") == r"x \0\1[mail] y"
    assert masked("x 8.8.8.8 y", "ip", ip=r"\g<0>") == r"x \g<0> y"


def test_a_missing_phone_library_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(UserError, match="pip install phonenumbers"):
        masking.require_phone_numbers()
