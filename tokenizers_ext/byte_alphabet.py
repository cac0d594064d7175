"""The alphabet of byte-level vocabularies (GPT-2): every byte is written as one printable character.

0x20 is written "Ġ", 0x0A "Ċ", 0x41 "A", 0xC3 "Ã".
"""

_ITSELF = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # printable Latin-1
_OTHERS = [byte for byte in range(256) if byte not in _ITSELF]  # 68 bytes, written U+0100, U+0101, ...
CHARACTER_OF_BYTE = {byte: byte for byte in _ITSELF} | {byte: 0x100 + k for k, byte in enumerate(_OTHERS)}
BYTE_OF_CHARACTER = {chr(character): byte for byte, character in CHARACTER_OF_BYTE.items()}


def printable(token: bytes) -> str:
    """How a byte-level vocabulary writes a token: b" a" -> "Ġa"."""
    return token.decode("latin-1").translate(CHARACTER_OF_BYTE)


def unprintable(written: str) -> bytes:
    """The bytes of a written token: "Ġa" -> b" a".

    Raises:
        KeyError: a character that stands for no byte.
    """
    return bytes([BYTE_OF_CHARACTER[character] for character in written])
