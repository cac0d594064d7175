import gzip
import json
from pathlib import Path

import pytest

from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"


@pytest.fixture(scope="session")
def documents() -> list[bytes]:
    """Real text: English, and the same declaration in many scripts; 0.5 MB."""
    lines = gzip.decompress((CORPUS / "sotu.jsonl.gz").read_bytes()).splitlines()
    english = [json.loads(line)["text"].encode()[:20_000] for line in lines[:15]]
    return english + [path.read_bytes() for path in sorted((CORPUS / "udhr").iterdir())[:20]]


@pytest.fixture(scope="session")
def texts(documents: list[bytes]) -> Texts:
    return Texts.of(documents)


@pytest.fixture(scope="session")
def model(texts: Texts) -> TreeModel:
    return ngram_model(texts, order=3, nodes=100_000)
