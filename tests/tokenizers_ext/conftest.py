import pytest

from seqmill.tokenizers_ext import train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 20,
    "def encode(texts):\n    return [text.split() for text in texts]\n" * 10,
    "Die Würde des Menschen ist unantastbar. Ελληνικά και Русский текст. " * 10,
    "人人生而自由，在尊严和权利上一律平等。" * 10,
]


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return train_bpe([TEXTS], 500)
