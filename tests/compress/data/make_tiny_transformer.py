"""Make tiny-transformer.arrow: a decoder of 38,000 numbers trained for a minute on examples/corpus, in integers.

    python tests/compress/data/make_tiny_transformer.py FOLDER_FOR_SCRATCH

A file made on another machine differs in some roundings of the training; the hashes in the tests are of the one here.
"""

import sys
from pathlib import Path

import torch

from seqmill.compress.integer_weights import write_weights
from seqmill.models import Model, ModelConfig
from seqmill.models.integer_export import integer_weights
from seqmill.models.training.gradients import PackedLoss, accumulate_gradients
from seqmill.models.training.optim import Optimizer, learning_rate
from seqmill.models.training.spread import Spread
from seqmill.packing import PackedDataset
from seqmill.pipeline.excerpts import ExcerptConfig, draw_excerpts
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent

HERE = Path(__file__).parent
CORPUS = HERE.parents[2] / "examples" / "corpus"
POSITIONS, STEPS, ROWS = 32, 800, 2


def main(scratch: Path) -> None:
    """Draw, pack, train, write."""
    executor, progress = LocalExecutor(1), Silent()
    ingest(IngestConfig((str(CORPUS),)), NormaliseConfig(), scratch / "documents", executor, progress)
    settings = ExcerptConfig(POSITIONS, sample_bytes=2_000_000)
    draw_excerpts(scratch / "documents", settings, scratch / "excerpts", executor, progress)
    pack(scratch / "excerpts", PackConfig(seq_len=32 * (POSITIONS + 1)), scratch / "packed", executor, progress)
    model = Model(ModelConfig(258, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=112))
    loss = Spread(PackedLoss(model, torch.float32, "sdpa"))
    optimizer = Optimizer(model, "adamw", (0.9, 0.95), 0.1)
    for step, batch in zip(range(1, STEPS + 1), PackedDataset(scratch / "packed", batch_rows=ROWS), strict=False):
        found = accumulate_gradients(loss, batch, torch.device("cpu"), 2112)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, STEPS, 50, 1e-2, 0.1))
        if step % 100 == 0:
            sys.stderr.write(f"{step} {found.mean:.3f} nats a byte\n")
    write_weights(HERE / "tiny-transformer.arrow", integer_weights(model, POSITIONS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
