"""What several ranks do together, one process of torchrun: `python rank_worker.py PACKED OUT`, once for all tests.

OUT/gradients-{ddp,fsdp}.safetensors    of one update of five rows
OUT/{ddp,fsdp,odd,muon,planned}         runs, as test_ranks.py asks for them
OUT/resumed-{ddp,fsdp}                  runs that one rank has begun
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from seqmill.models import Model, TrainConfig, train
from seqmill.models.training.gradients import PackedLoss, accumulate_gradients
from seqmill.models.training.ranks import Ranks, joined_ranks
from seqmill.models.training.spread import PARALLEL, spread, whole
from seqmill.packing import PackedDataset

SHAPE = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_dim": 48}
SMALL = {"steps": 6, "batch_tokens": 320, "micro_batch_rows": 1, "checkpoint_every": 3, "seed": 3, "shape": SHAPE}
RUNS = {
    "ddp": SMALL,
    "fsdp": {**SMALL, "parallel": "fsdp"},
    "odd": {**SMALL, "batch_tokens": 64, "parallel": "fsdp"},  # one row an update: one rank has none
    "muon": {**SMALL, "parallel": "fsdp", "optimizer": "muon"},
    "resumed-ddp": SMALL,
    "resumed-fsdp": {**SMALL, "parallel": "fsdp"},
}


def small_model() -> Model:
    """That of the runs, with a larger embedding so that every gradient is well above rounding."""
    model = Model(TrainConfig(**SMALL).model_config(100), seed=3)  # type: ignore[arg-type]
    with torch.no_grad():
        model.embedding.weight.mul_(10.0)
    return model


def gradients(packed: Path, parallel: str, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Of one update of five rows, in micro-batches of a row."""
    model = small_model()
    loss = spread(PackedLoss(model, torch.float32, "sdpa"), model.blocks, parallel, ranks)
    dataset = PackedDataset(packed, batch_rows=5, rank=ranks.rank, world_size=ranks.size)
    accumulate_gradients(loss, dataset.batch_at(0), torch.device("cpu"), 64)
    return {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def main(packed: Path, out: Path) -> None:
    """Everything, in the same order on all ranks."""
    torch.set_num_threads(1)
    with joined_ranks("cpu") as ranks:
        assert ranks.size > 1
        for parallel in PARALLEL:
            found = gradients(packed, parallel, ranks)
            if ranks.is_first:
                save_file(found, out / f"gradients-{parallel}.safetensors")
        for name, settings in RUNS.items():
            train(packed, out / name, TrainConfig(**settings))  # type: ignore[arg-type]
        plan = out / f"plan-{ranks.size}.arrow"
        train(packed, out / "planned", TrainConfig(**{**SMALL, "batch_tokens": 128 * ranks.size, "plan": str(plan)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
