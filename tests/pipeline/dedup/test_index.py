import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.dedup import stage
from seqmill.storage import only_writer, read_arrow

from .made import Deduplicated, Records, article, changed, record

RunDedup = Callable[..., Deduplicated]


def batch(source: str, seed: int) -> Records:
    """Fresh documents, and exact and near copies of documents of any batch."""
    draw = random.Random(seed)
    records = [record(f"{source}-{k}", article(1000 * seed + k, 120), source) for k in range(20)]
    for k in range(30):
        base = article(1000 * draw.randrange(1, 4) + draw.randrange(20), 120)
        records.append(record(f"{source}-copy-{k}", changed(base, draw.choice([0, 1, 2, 5]), k), source))
    draw.shuffle(records)
    return records


@pytest.mark.parametrize("containment", [None, 0.9])
def test_batch_after_batch_removes_what_one_run_over_all_would(
    run_dedup: RunDedup, tmp_path: Path, containment: float | None
) -> None:
    batches = {source: batch(source, seed) for seed, source in enumerate("abc", 1)}
    index = str(tmp_path / "index")
    step = {
        source: run_dedup(
            records, per_file=20, tag=source, index=index, source_priority=tuple("abc"), containment=containment
        )
        for source, records in batches.items()
    }
    everything = [one for records in batches.values() for one in records]
    whole = run_dedup(everything, per_file=20, tag="whole", source_priority=tuple("abc"), containment=containment)
    assert sorted(whole.kept_ids()) == sorted(id_ for found in step.values() for id_ in found.kept_ids())
    kept_for = {id_: kept for found in step.values() for id_, (_, kept) in found.removed_ids().items()}
    expected = {id_: kept for id_, (_, kept) in whole.removed_ids().items()}
    # the copy of a document that an earlier batch lost finds that document's leader instead
    assert kept_for == {id_: kept if id_[0] == kept[0] else expected.get(kept, kept) for id_, kept in expected.items()}
    assert len(kept_for) > 40
    from_index = [name for name in step["c"].removed["kept_from"].to_pylist() if name != "input"]
    assert set(from_index) == {"index/0000", "index/0001"}
    assert step["c"].manifest["index"] == {
        "documents_before": len(step["a"].kept) + len(step["b"].kept),
        "generation": "0002",
    }


def test_the_index_holds_what_was_kept_and_old_inputs_are_not_needed(run_dedup: RunDedup, tmp_path: Path) -> None:
    index = tmp_path / "index"
    records = [record("a", article(1)), record("copy", article(1)), record("b", article(2))]
    first = run_dedup(records, tag="old", index=str(index))
    held = read_arrow(index / "0000" / "part-00000.arrow")
    assert held["id"].to_pylist() == first.kept_ids() == ["a", "b"]
    for name in ("raw-old", "documents-old", "dedup-old"):
        shutil.rmtree(tmp_path / name)
    found = run_dedup([record("again", changed(article(2), 1, 5))], tag="new", index=str(index))
    assert found.removed_ids() == {"again": ("near", "b")}
    assert found.removed["cluster_id"].to_pylist() == [None]


def test_the_same_command_again_changes_nothing_and_makes_a_lost_output_again(
    run_dedup: RunDedup, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    records = [record(str(k), article(k % 3)) for k in range(6)]

    def state() -> dict[str, bytes]:
        return {str(path.relative_to(index)): path.read_bytes() for path in index.rglob("*") if path.is_file()}

    first = run_dedup(records, tag="one", index=str(index))
    before = state()
    assert run_dedup(records, tag="one", index=str(index)).files == first.files
    run_dedup([record("later", article(9))], tag="later", index=str(index))
    shutil.rmtree(tmp_path / "dedup-one")
    assert run_dedup(records, tag="one", index=str(index)).files == first.files
    assert {name: data for name, data in state().items() if not name.startswith("0001")} == before


@pytest.mark.parametrize("moment", ["remember", "write_generation", "write_manifest"])
def test_a_batch_that_was_interrupted_ends_as_if_it_had_not_been(
    run_dedup: RunDedup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    index = tmp_path / "index"
    old, new = batch("a", 1), batch("b", 2)
    run_dedup(old, per_file=20, tag="old", index=str(index))
    shutil.copytree(index, tmp_path / "before")
    whole = run_dedup(new, per_file=20, tag="new", index=str(index))
    expected = files_of(index / "0001")
    shutil.rmtree(index)
    shutil.copytree(tmp_path / "before", index)
    shutil.rmtree(tmp_path / "dedup-new")
    with monkeypatch.context() as patched:
        patched.setattr(stage, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_dedup(new, per_file=20, tag="new", index=str(index))
    assert run_dedup(new, per_file=20, tag="new", index=str(index)).files == whole.files
    assert files_of(index / "0001") == expected


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_only_the_last_batch_can_be_decided_anew(run_dedup: RunDedup, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    old, new = [record("a", article(1))], [record("b", changed(article(1), 6, 1))]
    run_dedup(old, tag="old", index=index)
    assert len(run_dedup(new, tag="new", index=index, threshold=0.9).removed) == 0
    assert len(run_dedup(new, tag="new", index=index, threshold=0.5).removed) == 1
    with pytest.raises(UserError, match=r"generation 0 of the index .* and the 1 after it rest on that"):
        run_dedup(old, tag="old", index=index, threshold=0.5)


def test_the_last_batch_can_grow_and_an_older_one_says_what_rests_on_it(run_dedup: RunDedup, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    records = [record(str(k), article(k)) for k in range(3)]
    run_dedup(records, tag="same", index=index)
    found = run_dedup([*records, record("new", article(7))], tag="same", index=index)
    assert found.kept_ids() == ["0", "1", "2", "new"]
    assert found.manifest["index"] == {"documents_before": 0, "generation": "0000"}
    run_dedup([record("later", article(8))], tag="later", index=index)
    with pytest.raises(UserError, match=r"generation 0 of the index .* a new --out for new documents"):
        run_dedup([*records, record("newer", article(9))], tag="same", index=index)


def test_what_was_held_out_is_part_of_a_batch_by_its_contents(run_dedup: RunDedup, tmp_path: Path) -> None:
    index, path = str(tmp_path / "index"), tmp_path / "eval.jsonl"
    records = [record(str(k), article(k)) for k in range(3)]
    path.write_text(json.dumps(record("eval", article(1))) + "\n")
    run_dedup(records, tag="old", index=index, holdout=(str(path),))
    run_dedup([record("later", article(8))], tag="later", index=index)
    path.rename(tmp_path / "moved.jsonl")
    again = run_dedup(records, tag="old", index=index, holdout=(str(tmp_path / "moved.jsonl"),))
    assert again.removed_ids() == {"1": ("holdout", "eval")}
    path.write_text(json.dumps(record("eval", article(2))) + "\n")
    with pytest.raises(UserError, match=r"generation 0 of the index .* other settings"):
        run_dedup(records, tag="old", index=index, holdout=(str(path),))


def test_a_batch_that_is_stopped_while_it_is_made_anew_leaves_the_index_whole(
    run_dedup: RunDedup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = str(tmp_path / "index")
    old, new = [record("a", article(1))], [record("b", changed(article(1), 6, 1)), record("c", article(3))]
    run_dedup(old, tag="old", index=index)
    run_dedup(new, tag="new", index=index, threshold=0.9)
    with monkeypatch.context() as patched:
        patched.setattr(stage, "write_generation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_dedup(new, tag="new", index=index, threshold=0.5)
    other = run_dedup([record("d", article(4)), record("a again", article(1))], tag="other", index=index)
    assert other.removed_ids() == {"a again": ("exact", "a")}
    assert other.manifest["index"] == {"documents_before": 1, "generation": "0001"}
    assert run_dedup(new, tag="new", index=index, threshold=0.5).manifest["index"]["generation"] == "0002"


def test_a_first_batch_that_fails_binds_nothing(run_dedup: RunDedup, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    with pytest.raises(UserError, match="does not exist"):
        run_dedup([record("a", article(1))], index=index, preset="dclm", holdout=(str(tmp_path / "none.jsonl"),))
    assert len(run_dedup([record("a", article(1))], index=index).kept) == 1


def test_an_index_with_a_gap_is_refused(run_dedup: RunDedup, tmp_path: Path) -> None:
    for k in range(2):
        run_dedup([record(str(k), article(k))], tag=str(k), index=str(tmp_path / "index"))
    shutil.rmtree(tmp_path / "index" / "0000")
    with pytest.raises(UserError, match="a generation 0001 and none 0000: it is not whole"):
        run_dedup([record("2", article(2))], tag="2", index=str(tmp_path / "index"))


def test_an_index_of_other_settings_is_refused(run_dedup: RunDedup, tmp_path: Path) -> None:
    run_dedup([record("a", article(1))], tag="old", index=str(tmp_path / "index"))
    with pytest.raises(UserError, match=r"was made with dedup.preset = 'fineweb', not 'dclm'"):
        run_dedup([record("b", article(2))], tag="new", index=str(tmp_path / "index"), preset="dclm")


def test_an_index_is_written_by_one_process_at_a_time(run_dedup: RunDedup, tmp_path: Path) -> None:
    with only_writer(tmp_path / "index"), pytest.raises(UserError, match=r"dedup.index = .* another seqmill process"):
        run_dedup([record("a", article(1))], index=str(tmp_path / "index"))


def test_a_damaged_index_is_refused(run_dedup: RunDedup, tmp_path: Path) -> None:
    run_dedup([record("a", article(1))], tag="old", index=str(tmp_path / "index"))
    (tmp_path / "index" / "0000" / "part-00000.arrow").unlink()
    with pytest.raises(UserError, match=r"part-00000.arrow is missing or damaged"):
        run_dedup([record("b", article(2))], tag="new", index=str(tmp_path / "index"))


def test_a_batch_that_adds_nothing_is_a_generation_too(run_dedup: RunDedup, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    run_dedup([record("a", article(1))], tag="old", index=index)
    found = run_dedup([record("b", article(1))], tag="same", index=index)
    assert (len(found.kept), found.manifest["totals"]["documents"]) == (0, 0)
    assert run_dedup([record("c", article(1))], tag="more", index=index).removed_ids() == {"c": ("exact", "a")}


def test_scopes_hold_between_batches(run_dedup: RunDedup, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    run_dedup([record("a", article(1), "books")], tag="old", index=index, scope="local")
    new = [record("b", article(1), "web"), record("c", article(1), "books")]
    assert run_dedup(new, tag="new", index=index, scope="local").removed_ids() == {"c": ("exact", "a")}
