import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing import validate
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.mixing import MixConfig
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.settings import build
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.tokenizers_ext import save_byte, save_subword, train_bpe

from . import oracle
from .conftest import Mixed, document

Folder = Callable[..., Path]
Mix = Callable[..., Mixed]


def three_sources(count: int = 60) -> list[dict[str, Any]]:
    """web: 30 documents, books: 20, code: 10; of 0 to 590 bytes."""
    names = ["web"] * 3 + ["books"] * 2 + ["code"]
    return [document(k, "x" * (k * 37 % 60 * 10), names[k % 6]) for k in range(count)]


def test_epochs_are_exact_and_the_rest_of_the_copies_goes_by_hash(documents_folder: Folder, run_mix: Mix) -> None:
    rows = three_sources()
    epochs = {"web": 0.5, "books": 2.3, "code": 0.0}
    mixed = run_mix(documents_folder(rows, per_part=13), epochs=epochs, seed=4)
    expected = oracle.copies_by_epochs(
        {row["doc_id"]: row["source"] for row in rows}, {name: str(times) for name, times in epochs.items()}, 4
    )
    assert mixed.copies() == {doc_id: count for doc_id, count in expected.items() if count}
    by_source = mixed.manifest["by_source"]
    assert {name: source["left"]["documents"] for name, source in by_source.items()} == {
        "books": 46,
        "code": 0,
        "web": 15,
    }
    assert {name: source["epochs"] for name, source in by_source.items()} == epochs
    reasons = mixed.manifest["funnel"][0]["reasons"]
    assert {reason: count["documents"] for reason, count in reasons.items()} == {
        "not sampled: code": 10,
        "not sampled: web": 15,
    }
    assert mixed.manifest["repeated"]["documents"] == 26


def test_copies_are_numbered_only_where_documents_are_repeated(documents_folder: Folder, run_mix: Mix) -> None:
    folder = documents_folder(three_sources())
    assert "copy" not in run_mix(folder, epochs={"web": 0.5}).columns
    repeated = run_mix(folder, epochs={"code": 3})
    assert repeated.columns[-1] == "copy"
    for doc_id, count in repeated.copies().items():
        assert sorted(copy for other, copy in repeated.order() if other == doc_id) == list(range(count))


def test_a_target_in_documents_is_met_exactly(documents_folder: Folder, run_mix: Mix) -> None:
    weights = {"web": 0.7, "books": 0.3, "code": 0}
    mixed = run_mix(documents_folder(three_sources()), weights=weights, target=101, unit="documents")
    left = {name: source["left"]["documents"] for name, source in mixed.manifest["by_source"].items()}
    assert left == {"books": 30, "code": 0, "web": 71}
    assert all(source["deviation"] == 0 for source in mixed.manifest["by_source"].values())


def test_a_target_in_bytes_is_met_as_closely_as_whole_documents_can_and_the_deviation_is_said(
    documents_folder: Folder, run_mix: Mix
) -> None:
    rows = three_sources()
    mixed = run_mix(documents_folder(rows), weights={"web": 1, "books": 2, "code": 3}, target=30_001, unit="bytes")
    for name, wanted in (("web", 5000), ("books", 10_000), ("code", 15_001)):
        own = sorted(
            (row for row in rows if row["source"] == name),
            key=lambda row: oracle.choice_key(row["doc_id"], 0, "choice"),
        )
        size = oracle.closest(wanted, [len(row["text"]) for row in own], at_most=False)
        source = mixed.manifest["by_source"][name]
        assert (source["wanted_size"], source["size"], source["deviation"]) == (wanted, size, size - wanted)


def test_without_a_target_it_is_as_much_as_the_most_epochs_allow(documents_folder: Folder, run_mix: Mix) -> None:
    rows = three_sources()
    have = {name: sum(len(row["text"]) for row in rows if row["source"] == name) for name in ("web", "books", "code")}
    folder = documents_folder(rows)
    for most in (None, 1.5, 4.0):
        mixed = run_mix(folder, weights={"web": 5, "books": 1, "code": 1}, max_epochs=most)
        sources = mixed.manifest["by_source"]
        assert all(sources[name]["size"] <= (most or 1) * have[name] for name in have)
        assert max(sources[name]["wanted_size"] / have[name] for name in have) == pytest.approx(most or 1, abs=1e-3)
        assert [round(sources[name]["wanted_share"], 3) for name in have] == [0.714, 0.143, 0.143]
    assert "web" not in str(run_mix(folder, weights={"web": 1, "books": 0, "code": 0}).manifest["funnel"][0]["reasons"])


@settings(max_examples=6)
@given(
    epochs=st.dictionaries(st.sampled_from(["web", "books", "code"]), st.integers(0, 40).map(lambda n: n / 10)),
    weights=st.dictionaries(st.sampled_from(["web", "books", "code"]), st.integers(0, 9), min_size=3),
    unit=st.sampled_from(["documents", "bytes"]),
    target=st.none() | st.integers(1, 50_000),
    per_part=st.integers(5, 60),
)
def test_counts_add_up_for_every_mixture(
    tmp_path_factory: pytest.TempPathFactory,
    epochs: dict[str, float],
    weights: dict[str, int],
    unit: str,
    target: int | None,
    per_part: int,
) -> None:
    base = tmp_path_factory.mktemp("mixture")
    from .conftest import documents_folder, run_mix

    folder = documents_folder.__wrapped__(base)(three_sources(), per_part=per_part)  # type: ignore[attr-defined]
    run = run_mix.__wrapped__(base)  # type: ignore[attr-defined]
    run(folder, epochs=epochs)  # Mixed checks the counts
    if any(weights.values()):
        wanted = target if target is None or unit == "bytes" else target // 100 + 1
        mixed = run(folder, weights=weights, unit=unit, target=wanted)
        if wanted is not None and unit == "documents":
            assert len(mixed.rows) == wanted
        assert sum(source["wanted_size"] for source in mixed.manifest["by_source"].values()) == (
            wanted or sum(source["wanted_size"] for source in mixed.manifest["by_source"].values())
        )


@pytest.mark.parametrize("texts", [[], [""], ["e\u0301\U0001f469\u200d\U0001f469"], ["", "one"]])
def test_tiny_inputs_pass_unharmed(documents_folder: Folder, run_mix: Mix, texts: list[str]) -> None:
    rows = [document(k, text, tags=[text, "x"]) for k, text in enumerate(texts)]
    mixed = run_mix(documents_folder(rows))
    assert sorted(mixed.rows, key=lambda row: row["doc_id"]) == rows


def test_folders_that_were_ingested_apart_get_ids_of_their_own(documents_folder: Folder, run_mix: Mix) -> None:
    web = [document(file << 40 | row, source="web", cluster_id=7 << 40) for file in range(3) for row in range(2)]
    books = [document(file << 40 | row, source="books", cluster_id=1) for file in range(2) for row in range(2)]
    mixed = run_mix(documents_folder(web, "web"), documents_folder(books, "books"))
    assert sorted((row["doc_id"] >> 40, row["source"]) for row in mixed.rows) == sorted(
        [(file, "web") for file in (0, 1, 2)] * 2 + [(file, "books") for file in (3, 4)] * 2
    )
    assert {row["cluster_id"] for row in mixed.rows if row["source"] == "books"} == {(3 << 40) + 1}
    assert [one["id_shift"] for one in mixed.manifest["inputs"]] == [0, 3 << 40]


def test_folders_of_one_ingest_keep_their_ids(documents_folder: Folder, run_mix: Mix) -> None:
    rows = three_sources()
    mixed = run_mix(documents_folder(rows[::2], "even"), documents_folder(rows[1::2], "odd"))
    assert mixed.order() == run_mix(documents_folder(rows, "all")).order()
    assert sorted(doc_id for doc_id, _ in mixed.order()) == [row["doc_id"] for row in rows]


def test_tokens_are_mixed_with_their_tokenizer_and_can_be_packed(
    documents_folder: Folder, run_mix: Mix, tmp_path: Path
) -> None:
    save_byte(tmp_path / "bytes")
    tokens = tmp_path / "tokens"
    executor = LocalExecutor(1)
    folder = documents_folder(three_sources(), per_part=25)
    tokenize(folder, tmp_path / "bytes", TokenizeConfig(), tokens, executor, Silent())
    mixed = run_mix(tokens, weights={"web": 1, "books": 1, "code": 2}, target=40_000)
    manifest = mixed.manifest
    assert manifest["unit"] == "tokens"
    assert manifest["totals"]["tokens"] == sum(len(row["input_ids"]) for row in mixed.rows)
    assert abs(manifest["totals"]["tokens"] - 40_000) < 3 * 600
    assert all(len(row["input_ids"]) == row["num_bytes"] + 1 for row in mixed.rows)
    packed = pack(mixed.out, PackConfig(seq_len=256), tmp_path / "packed", executor, Silent())
    assert packed["totals"]["tokens"] == manifest["totals"]["tokens"]
    assert packed["totals"]["documents_repeated"] == manifest["repeated"]["documents"] > 0
    assert validate(tmp_path / "packed", mixed.out).violations == ()


def test_unlike_folders_are_refused(documents_folder: Folder, run_mix: Mix, tmp_path: Path) -> None:
    executor = LocalExecutor(1)
    rows = three_sources()
    documents = documents_folder(rows)
    save_byte(tmp_path / "bytes")
    save_subword(tmp_path / "bpe", train_bpe([[row["text"] for row in rows]], 300), {})
    for name, kind, eos in (("t1", "bytes", True), ("t2", "bpe", True), ("t3", "bytes", False)):
        tokenize(documents, tmp_path / kind, TokenizeConfig(append_eos=eos), tmp_path / name, executor, Silent())
    clustered = documents_folder([document(1, cluster_id=1)], "clustered")
    for folders, message in (
        ((documents, tmp_path / "t1"), "holds tokens, but .* holds documents"),
        ((tmp_path / "t1", tmp_path / "t2"), "different tokenizers"),
        ((tmp_path / "t1", tmp_path / "t3"), "tokenized with other settings"),
        ((documents, clustered), "has the columns .*cluster_id uint64"),
        ((documents, tmp_path / "none"), "has no manifest"),
        ((), "nothing to mix"),
    ):
        with pytest.raises(UserError, match=message):
            run_mix(*folders)
    shutil.copytree(tmp_path / "bpe", tmp_path / "t1" / "tokenizer", dirs_exist_ok=True)
    with pytest.raises(UserError, match="not the tokenizer that made these tokens"):
        run_mix(tmp_path / "t1")


def test_repeated_input_is_refused(documents_folder: Folder, run_mix: Mix) -> None:
    with pytest.raises(UserError, match="document 5 more than once"):
        run_mix(documents_folder([document(5), document(6), document(5)], "twice"))
    once = documents_folder(three_sources(), "once")
    with pytest.raises(UserError, match="column 'copy'"):
        run_mix(run_mix(once, epochs={"web": 2}).out)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": {"web": 1, "book": 1}}, "no source 'book' in the input; its sources are books, code, web"),
        ({"epochs": {"wed": 1}}, "no source 'wed'"),
        ({"weights": {"web": 1, "books": 1}}, "source 'code' has no weight"),
        ({"weights": {"web": 1, "books": 1, "code": 1}, "unit": "tokens"}, "documents have none yet"),
        (
            {"weights": {"web": 1, "books": 1, "code": 1}, "target": 10**6, "unit": "bytes", "max_epochs": 2.0},
            "needs 333334 of 'books'",
        ),
        ({"epochs": {"web": 2e6}}, "would be seen 2000000 times"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(
    documents_folder: Folder, run_mix: Mix, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_mix(documents_folder(three_sources()), **config)


def test_a_source_without_bytes_cannot_have_a_part_of_them(documents_folder: Folder, run_mix: Mix) -> None:
    folder = documents_folder([document(0, ""), document(1, "x", "books")])
    with pytest.raises(UserError, match="source 'web' has no bytes"):
        run_mix(folder, weights={"web": 1, "books": 1})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": {"a": 1.0}, "epochs": {"a": 1.0}}, "exclude each other"),
        ({"weights": {"a": -1.0}}, "at least 0"),
        ({"epochs": {"a": float("nan")}}, "finite"),
        ({"weights": {"a": 0.0}}, "all 0"),
        ({"target": 5}, "with mix.weights only"),
        ({"weights": {"a": 1.0}, "target": 0}, "at least 1"),
        ({"weights": {"a": 1.0}, "unit": "words"}, "choose one of"),
        ({"weights": {"a": 1.0}, "max_epochs": 0.0}, "above 0"),
        ({"memory_mb": 0}, "at least 1"),
        ({"parameters": 0}, "at least 1"),
    ],
)
def test_impossible_settings_fail_before_any_work(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixConfig(**config)


def test_the_configuration_comes_from_a_table() -> None:
    config = build(MixConfig, {"weights": {"web": 1, "books": 0.5}, "target": 10, "unit": "tokens"}, "mix")
    assert config == MixConfig(weights={"web": 1.0, "books": 0.5}, target=10, unit="tokens")
    with pytest.raises(UserError, match=r"mix\.epochs\.web = 'twice' is of the wrong type: a number is needed"):
        build(MixConfig, {"epochs": {"web": "twice"}}, "mix")


def test_harmful_repetition_is_reported_for_the_size_of_a_model(documents_folder: Folder, run_mix: Mix) -> None:
    folder = documents_folder(three_sources(6))
    mixed = run_mix(folder, epochs={"web": 50, "books": 2000}, parameters=800_000_000)
    assert mixed.manifest["damage_band"]["harmful"] == ["web"]
    assert mixed.manifest["damage_band"]["beyond"] == ["books"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def heavy() -> list[dict[str, Any]]:
    return [document(k, chr(97 + k % 26) * 9000, ["web", "books"][k % 2]) for k in range(120)]


def test_what_a_kill_left_is_finished_with_the_same_bytes(documents_folder: Folder, run_mix: Mix) -> None:
    folder = documents_folder(heavy(), per_part=50)
    config = {"epochs": {"web": 1.5}, "memory_mb": 1}
    mixed = run_mix(folder, **config)
    whole = files_of(mixed.out)
    assert len([name for name in whole if name.startswith("part-")]) > 3
    state = mixed.out / ".state"
    assert not (state / "runs").exists()

    times = {path: path.stat().st_mtime_ns for path in mixed.out.glob("part-*")}
    run_mix(folder, out=mixed.out, **config)
    assert {path: path.stat().st_mtime_ns for path in mixed.out.glob("part-*")} == times
    assert not (state / "runs").exists()  # nothing was dealt again

    (mixed.out / "part-00001.arrow").unlink()
    (state / "part-00002.json").unlink()
    (mixed.out / "manifest.json").unlink()
    (mixed.out / "part-00000.arrow.1.tmp").write_bytes(b"half")
    run_mix(folder, out=mixed.out, **config)
    assert files_of(mixed.out) == whole

    shutil.rmtree(state / "survey")
    (mixed.out / "part-00003.arrow").write_bytes(b"damaged")
    run_mix(folder, out=mixed.out, **config)
    assert files_of(mixed.out) == whole


def test_a_changed_input_or_setting_is_mixed_anew(documents_folder: Folder, run_mix: Mix) -> None:
    mixed = run_mix(documents_folder(heavy()), memory_mb=1)
    again = run_mix(documents_folder(heavy()[:40], "less"), out=mixed.out)
    assert len(again.rows) == 40
    assert len(list(again.out.glob("part-*"))) == len(again.manifest["files"])


def test_two_workers_finish_what_one_began_with_the_same_bytes(
    documents_folder: Folder, run_mix: Mix, tmp_path: Path
) -> None:
    folder = documents_folder(heavy(), per_part=60)
    config = {"epochs": {"web": 2}, "memory_mb": 1}
    one = run_mix(folder, **config)
    two = tmp_path / "two"
    (two / ".state").mkdir(parents=True)
    shutil.copytree(one.out / ".state" / "survey", two / ".state" / "survey")
    run_mix(folder, out=two, workers=2, **config)  # plans here; deals and gathers in two processes
    assert files_of(two) == files_of(one.out)
