"""Reading: no copy of a row, every row once per epoch for any number of ranks, and labels of residual rows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from seqmill.errors import UserError
from seqmill.packing.sets import SetPacks, as_torch, mixed_labels
from seqmill.packing.sets.packs import Pack

SIZES = [40, 3, 17, 90, 8, 1, 25, 33, 12]


@pytest.fixture
def packed(pack_bags: Callable, bags_of: Callable) -> SetPacks:
    return SetPacks(pack_bags(bags_of(SIZES, 4), capacity=16)[0])


def test_a_row_is_read_without_a_copy(packed: SetPacks) -> None:
    one, again = packed.pack(1), packed.pack(1)
    assert not one.features.flags.writeable
    assert one.features.ctypes.data == again.features.ctypes.data
    buffer = packed._batches[0].column("features").values.values.buffers()[1]
    assert buffer.address <= one.features.ctypes.data < buffer.address + buffer.size
    with pytest.raises(IndexError, match="row 99 of"):
        packed.pack(99)


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 100])
@pytest.mark.parametrize("ranks", [1, 3])
def test_an_epoch_has_every_row_once(packed: SetPacks, batch_rows: int, ranks: int) -> None:
    per_rank = [list(packed.steps(batch_rows, 1, 2, rank, ranks)) for rank in range(ranks)]
    assert {len(steps) for steps in per_rank} == {-(-packed.main_rows // batch_rows)}
    for kind in (0, 1):
        rows = [row for steps in per_rank for step in steps for row in step[kind].row_ids.tolist()]
        bounds = ((0, packed.main_rows), (packed.main_rows, packed.rows))[kind]
        assert sorted(rows) == list(range(*bounds))
        assert all(step[kind].is_residual == bool(kind) for steps in per_rank for step in steps)
    together = [[row for main, _ in step for row in main.row_ids.tolist()] for step in zip(*per_rank, strict=True)]
    alone = [step[0].row_ids.tolist() for step in packed.steps(batch_rows, 1, 2)]
    assert together == alone  # the order does not depend on the ranks


def test_epochs_differ_in_order(packed: SetPacks) -> None:
    orders = [[step[1].row_ids.tolist() for step in packed.steps(1, 0, epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_rows_of_a_step_are_joined_with_their_bounds(packed: SetPacks) -> None:
    for main, residual in packed.steps(3):
        for pack in (main, residual):
            parts = [packed.pack(row) for row in pack.row_ids.tolist()]
            if not parts:
                continue
            lengths = np.concatenate([np.diff(part.cu_seqlens) for part in parts])
            assert np.diff(pack.cu_seqlens).tolist() == lengths.tolist()
            assert np.array_equal(pack.features, np.concatenate([part.features for part in parts]))
            assert pack.max_seqlen == lengths.max()
            assert pack.cu_seqlens.dtype == np.int32


def test_packs_are_torch_tensors(packed: SetPacks) -> None:
    main, _ = next(packed.steps(2))
    batch = as_torch(main)
    assert (batch["features"].dtype, batch["cu_seqlens"].dtype) == (torch.float16, torch.int32)
    assert batch["features"].data_ptr() == main.features.ctypes.data
    assert torch.equal(batch["features"], torch.from_numpy(main.features))
    assert as_torch(packed.pack(0))["features"].shape == packed.pack(0).features.shape


def test_labels_of_a_residual_row_are_mixed() -> None:
    none = np.zeros((0, 1), np.float16)
    bounds, labels = np.array([0, 1, 2, 10], np.int32), np.array([2, 2, 0])
    pack = Pack(none, bounds, 8, np.zeros(0, np.int32), np.arange(3), [], labels, True, np.zeros(1, np.int64))
    assert mixed_labels(pack, 4).tolist() == [0.5, 0, 1, 0]
    assert mixed_labels(pack, 4, by_size=True).tolist() == [1, 0, 0.25, 0]


def test_ranks_and_steps_out_of_range_are_refused(packed: SetPacks) -> None:
    for arguments in ((0,), (1, 0, 0, 2, 2)):
        with pytest.raises(UserError, match="ranks from 0 on"):
            next(packed.steps(*arguments))
