"""What every driver of a loader does: write the tokens in its own format, then read them as batches, and say how fast.

    python read_PEER.py describe OUT                    version, names of its variants
    python read_PEER.py prepare OUT CORPUS DATA         the tokens in its own format, in the new folder DATA
    python read_PEER.py read OUT DATA WORKERS           seconds and tokens of the best pass, per variant
    python read_PEER.py save OUT DATA STEP VARIANT      the state in which global step STEP is next, as JSON
    python read_PEER.py resume OUT DATA STATE VARIANT   seconds from opening the data to the first batch behind STATE

CORPUS has tokens.npy, uint16, and lengths.npy, the lengths of documents, which add up to whole batches. A batch is 8
rows of 2048 tokens as int64 tensors, and every pass over the data has another order where the peer shuffles. Peers
that keep the type of what is stored are given int64, so that none has to convert. A first pass is not counted, and so
neither is the start of a worker, which stays. Drivers run in the peer's own environment, so this file uses torch, as
all of them do, numpy and the standard library only.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from protocol import answer
from torch import Tensor

ROW, BATCH = 2048, 8  # tokens of a row, rows of a batch
PASSES = 3  # the best of so many
SEED = 1

Batches = Iterable[Any]


@dataclass(frozen=True)
class Reader:
    """One way in which a peer reads."""

    open: Callable[[Path, int], Callable[[], Batches]]  # of the data and the number of workers: what begins a pass
    save: Callable[[Path, int], Any]  # of the data and a global step; its state, as JSON
    resume: Callable[[Path, Any], Batches]  # of the data and the state


def main(package: str, prepare: Callable[[Path, Path], None], variants: Mapping[str, Reader]) -> None:
    """Do the task that the command line names."""

    def prepared(_out: Path, corpus: str, data: str) -> dict[str, Any]:
        prepare(Path(corpus), Path(data))
        return {}

    def speeds(_out: Path, data: str, workers: str) -> dict[str, Any]:
        return {"variants": {name: read(one, Path(data), int(workers)) for name, one in variants.items()}}

    def saved(out: Path, data: str, step: str, name: str) -> dict[str, Any]:
        (out / "state.json").write_text(json.dumps(variants[name].save(Path(data), int(step))))
        return {}

    def resumed(_out: Path, data: str, state: str, name: str) -> dict[str, Any]:
        seconds, tokens = first_batch(variants[name], Path(data), json.loads(Path(state).read_text()))
        return {"seconds": seconds, "tokens": tokens}

    tasks = {"prepare": prepared, "read": speeds, "save": saved, "resume": resumed}
    answer(package, tasks, variants=list(variants))


def read(reader: Reader, data: Path, workers: int) -> dict[str, Any]:
    """Seconds of the best pass, and the tokens that every pass gave."""
    begin, times, counts = reader.open(data, workers), list[float](), set[int]()
    for _ in range(1 + PASSES):
        began = time.perf_counter()
        counts.add(sum(ids(batch).numel() for batch in begin()))
        times.append(time.perf_counter() - began)
    assert len(counts) == 1, f"passes gave different numbers of tokens: {sorted(counts)}"
    return {"seconds": min(times[1:]), "tokens": counts.pop()}


def first_batch(reader: Reader, data: Path, state: Any) -> tuple[float, int]:
    """Seconds to the first batch behind a state, and its tokens."""
    began = time.perf_counter()
    batch = next(iter(reader.resume(data, state)))
    return time.perf_counter() - began, ids(batch).numel()


def ids(batch: Any) -> Tensor:
    """The token ids of a batch, of its type checked."""
    found: Tensor = batch if isinstance(batch, Tensor) else batch["input_ids"]
    assert str(found.dtype) == "torch.int64", f"a batch of {found.dtype}"
    return found


def rows_of(corpus: Path) -> np.ndarray:
    """All tokens, int64[rows, ROW]: the documents one after the other."""
    return np.load(corpus / "tokens.npy").astype(np.int64).reshape(-1, ROW)


def skip(batches: Batches, count: int) -> None:
    """Read so many batches."""
    for _ in islice(batches, count):
        pass
