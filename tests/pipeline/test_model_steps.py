import json
import math
from pathlib import Path

import numpy as np
import pytest

from seqmill.compress.integer_transformer import IntegerTransformer
from seqmill.errors import UserError
from seqmill.models import load, score
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.model_steps import BYTE_MODEL, ByteModelConfig, train_byte_model
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.storage import read_arrow

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
START = 256
CONFIG = ByteModelConfig(model="bytes-0.2m", steps=40, batch_tokens=1040, excerpt_bytes=32, device="cpu")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bytes") / "documents"
    ingest(IngestConfig((str(CORPUS / "jargon.jsonl"),)), NormaliseConfig(), out, LocalExecutor(1), Silent())
    return out


def test_a_byte_model_trained_from_documents_is_as_good_in_integers_as_in_floats(
    documents: Path, tmp_path: Path
) -> None:
    path = train_byte_model(documents, CONFIG, tmp_path, LocalExecutor(1), Silent())
    assert path == tmp_path / BYTE_MODEL
    text = "".join(read_arrow(documents / "part-00000.arrow")["text"].to_pylist()[:40]).encode()
    excerpts = [text[first : first + 32] for first in range(0, 3200, 64)]
    floats = [scores for excerpt in excerpts for scores in score(load(tmp_path / "run"), [[START, *excerpt]])]
    exact = -np.concatenate(floats).mean() / math.log(2)
    model = IntegerTransformer.open(path, precision=16)
    assert model.longest_context == 31
    found = model.frequencies([excerpt[:size] for excerpt in excerpts for size in range(32)])
    followers = np.frombuffer(b"".join(excerpts), np.uint8)
    bits = -np.log2(found[np.arange(len(found)), followers] / 2**16).mean()
    assert bits == pytest.approx(exact, rel=0.01)
    assert exact < 5  # 8 without training


def test_a_second_run_trains_nothing_and_writes_the_same_model(documents: Path, tmp_path: Path) -> None:
    few = ByteModelConfig(model="bytes-0.2m", steps=2, batch_tokens=528, excerpt_bytes=32, device="cpu")
    first = train_byte_model(documents, few, tmp_path, LocalExecutor(1), Silent()).read_bytes()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert train_byte_model(documents, few, tmp_path, LocalExecutor(1), Silent()).read_bytes() == first
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    assert len([json.loads(line) for line in log.splitlines()]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "tiny"}, "model = 'tiny'.*preset of bytes"),
        ({"steps": 0}, "steps = 0"),
        ({"excerpt_bytes": 1}, "length = 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ByteModelConfig(**settings)  # type: ignore[arg-type]
