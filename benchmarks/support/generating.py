"""What benchmarks of generation begin with: a model, its tokenizer, and some documents as its tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.models import Model, load
from seqmill.models.config import PRESETS, preset_config
from seqmill.models.huggingface import export_huggingface, is_huggingface
from seqmill.pipeline.model_steps import tokenizer_of
from seqmill.tokenizers_ext import Encoder, train_bpe
from seqmill.tokenizers_ext import load as load_tokenizer
from seqmill.tokenizers_ext.subword import SubwordEncoder

from . import corpus

MODELS = {"cpu": "tiny", "cuda": "124m"}
VOCABULARY = {"cpu": 8192, "cuda": 32_768}
MOST_BYTES = 4_000_000  # of text
LONGEST = 2048  # tokens of a prompt
SEED = 1

Ids = np.ndarray


def require_model(name: str) -> str:
    """The name of a preset, or the path of a folder.

    Raises:
        UserError: it is neither.
    """
    if name not in PRESETS and not Path(name).is_dir():
        raise UserError(f"--model {name}: neither a folder nor a preset; presets are {', '.join(PRESETS)}")
    return name


def model_and_documents(scratch: Path, name: str, data: Path | None, device: str) -> tuple[Path, list[Ids]]:
    """The folder of a model, and some documents as its tokens, int64, those without any left out.

    Args:
        name: as `prepare_model` takes it.
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
    """
    texts = corpus.some_texts(data, scratch / "all", MOST_BYTES)
    weights, encoder = prepare_model(scratch / "model", name, texts, VOCABULARY[device])
    return weights, [np.array(ids, np.int64) for ids in encoder.encode(texts).to_pylist() if ids]


def prepare_model(folder: Path, name: str, texts: pa.Array, vocab_size: int) -> tuple[Path, Encoder]:
    """A folder that transformers and we read, and the tokenizer of a model.

    Args:
        name: a preset, which gets random weights and a BPE of `texts` with `vocab_size` ids; or a folder.
    """
    if name in PRESETS:
        encoder = SubwordEncoder(train_bpe([texts], vocab_size))
        export_huggingface(Model(preset_config(name, encoder.vocab_size), SEED), folder)
        return folder, encoder
    given = Path(name).absolute()
    if not is_huggingface(given):
        export_huggingface(load(given), folder)
    return given if is_huggingface(given) else folder, load_tokenizer(tokenizer_of(given))
