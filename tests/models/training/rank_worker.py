"""What several ranks do together, one process of torchrun: `python rank_worker.py PACKED OUT`, once for all tests.

OUT/gradients-{ddp,fsdp}.safetensors    of one update of five rows
OUT/compiled-{ddp,fsdp}.safetensors     the same by compiled code, for more than two ranks
OUT/{ddp,fsdp,odd,muon,planned,shared}  runs, as test_ranks.py asks for them
OUT/resumed-{ddp,fsdp}                  runs that one rank has begun
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from seqmill.models import Model, TrainConfig, train
from seqmill.models.memory import MemorySettings
from seqmill.models.training.gradients import accumulate_gradients
from seqmill.models.training.packed_loss import LossSettings, PackedLoss
from seqmill.models.training.ranks import PARALLEL, Ranks, joined_ranks
from seqmill.models.training.sharing import gathered
from seqmill.models.training.spread import spread
from seqmill.packing import PackedDataset

SHAPE = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_dim": 48}
SMALL = {"steps": 4, "batch_tokens": 320, "micro_batch_rows": 1, "checkpoint_every": 2, "seed": 3, "shape": SHAPE}
RUNS = {
    "ddp": SMALL,
    "fsdp": {**SMALL, "parallel": "fsdp"},
    "odd": {**SMALL, "batch_tokens": 64, "parallel": "fsdp"},  # one row an update: one rank has none
    "muon": {**SMALL, "parallel": "fsdp", "optimizer": "muon"},
    "ring": {**SMALL, "context_parallel": 2, "batch_tokens": 64, "shape": {**SHAPE, "qk_norm": True}},
    "ulysses": {**SMALL, "context_parallel": 2, "context_kind": "ulysses", "parallel": "fsdp"},
    "experts": {**SMALL, "shape": {**SHAPE, "experts": 4, "experts_per_token": 2}, "balance": 0.1, "router_z": 0.01},
    "lean": {**SMALL, "parallel": "fsdp", "memory": MemorySettings(checkpoint="keep-attention", mlp_tile=16)},
    "resumed-ddp": SMALL,
    "resumed-fsdp": {**SMALL, "parallel": "fsdp"},
}
FOR_TWO = ("odd", "muon", "lean")  # that more ranks would do the same way


def small_model() -> Model:
    """That of the runs, with a larger embedding so that every gradient is well above rounding."""
    model = Model(TrainConfig(**SMALL).model_config(100), seed=3)  # type: ignore[arg-type]
    with torch.no_grad():
        model.embedding.weight.mul_(10.0)
    return model


def gradients(packed: Path, parallel: str, ranks: Ranks, compiler: str | None = None) -> dict[str, torch.Tensor]:
    """Of one update of five rows, in micro-batches of a row."""
    model = small_model()
    loss = spread(PackedLoss(model, LossSettings(compiler=compiler)), parallel, ranks)
    dataset = PackedDataset(packed, batch_rows=5, rank=ranks.rank, world_size=ranks.size)
    accumulate_gradients(loss, dataset.batch_at(0), torch.device("cpu"), 64)
    return {name: gathered(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def main(packed: Path, out: Path) -> None:
    """Everything, in the same order on all ranks."""
    torch.set_num_threads(1)
    with joined_ranks("cpu") as ranks:
        assert ranks.size > 1
        for parallel in PARALLEL:
            found = gradients(packed, parallel, ranks)
            if ranks.is_first:
                save_file(found, out / f"gradients-{parallel}.safetensors")
            if ranks.size > 2:
                found = gradients(packed, parallel, ranks, "aot_eager")  # without the C++ compiler
                if ranks.is_first:
                    save_file(found, out / f"compiled-{parallel}.safetensors")
        for name, settings in RUNS.items():
            if ranks.size > 2 and name in FOR_TWO:
                continue
            train(packed, out / name, TrainConfig(**settings))  # type: ignore[arg-type]
        still = {**SMALL, "learning_rate": 1e-12}  # the first weights, in every update
        planned = {**still, "batch_tokens": 128 * ranks.size, "plan": str(out / f"plan-{ranks.size}.arrow")}
        train(packed, out / "planned", TrainConfig(**planned))  # type: ignore[arg-type]
        groups = {**planned, "plan": str(out / f"groups-{ranks.size}.arrow"), "checkpoint_every": 1}
        groups |= {"parallel": "fsdp", "context_kind": "ulysses"} if ranks.size > 2 else {}
        train(packed, out / "shared", TrainConfig(**groups))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
