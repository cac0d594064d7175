"""A byte model, texts to score with it, and what transformers makes of each text alone."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from seqmill.manifest import OutputFile, write_manifest
from seqmill.models import Model, ModelConfig
from seqmill.models.huggingface import export_huggingface
from seqmill.storage import write_arrow
from seqmill.tokenizers_ext.artifact import save_byte

EOS, VOCABULARY = 256, 258
TEXTS = [
    "", "a", "naïve Русский 日本語", "👩\u200d👧 e\u0301\u0301\u0301", "\x7f \r\n\t", "", "long " * 400,
    *(f"entry {k}: " + "the quick brown fox " * (k % 7) for k in range(40)),
]  # fmt: skip
SOURCES = [("web", "books", "code")[k % 3] for k in range(len(TEXTS))]


def save_model(folder: Path, vocab_size: int = VOCABULARY, seed: int = 1) -> Path:
    """A decoder of bytes with its tokenizer, as transformers reads it too; logits are far from uniform."""
    model = Model(ModelConfig(vocab_size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48), seed)
    with torch.no_grad():
        model.embedding.weight.mul_(10.0)
    export_huggingface(model, folder)
    save_byte(folder / "tokenizer")
    return folder


def write_documents(folder: Path, texts: list[str], sources: list[str], parts: int = 2, batch_rows: int = 10) -> Path:
    """A documents folder of these texts, empty ones too, which no stage of the pipeline would leave in."""
    rows = [
        {"doc_id": k, "text": text, "source": source}
        for k, (text, source) in enumerate(zip(texts, sources, strict=True))
    ]
    schema = pa.schema({"doc_id": pa.uint64(), "text": pa.large_string(), "source": pa.string()})
    files = []
    for part in range(parts):
        some = rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]
        batches = [
            pa.RecordBatch.from_pylist(some[k : k + batch_rows], schema) for k in range(0, len(some), batch_rows)
        ]
        name = f"part-{part:05d}.arrow"
        files.append(OutputFile.of(folder, name, write_arrow(folder / name, schema, batches)))
    totals = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    write_manifest(folder, "documents", files, totals=totals)
    return folder


@torch.no_grad()
def read_alone(model: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of all tokens but the first, and the hidden states of all, by a model of transformers."""
    output = model(torch.tensor([ids]), output_hidden_states=True)
    log_p = output.logits[0].log_softmax(-1).numpy()
    return log_p[np.arange(len(ids) - 1), ids[1:]], output.hidden_states[-1][0].numpy()


def bits_per_byte(log_p: np.ndarray, text: str) -> float | None:
    """Of the text of which these tokens were predicted; None for no token or no byte."""
    size = len(text.encode())
    return -float(log_p.sum(dtype=np.float64)) / math.log(2) / size if size and len(log_p) else None
