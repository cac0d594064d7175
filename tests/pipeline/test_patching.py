"""Tokens with patches: the column, the patcher beside it, and the stage's promises."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pools import local
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing import validate
from seqmill.pipeline import load_config
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.storage import read_arrow, read_metadata, with_metadata, write_arrow
from seqmill.tokenizers_ext import save_byte, save_subword, train_bpe
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.patching import NgramConfig, PatchConfig, load_patcher, load_scorer, patch_lengths

SMALL = NgramConfig(min_count=2)
ENTROPY = PatchConfig("entropy", target_bytes=4.0, ngram=SMALL)


def text(seed: int) -> str:
    draw = random.Random(seed)
    words = ["naïve", "東京", "theory", "of", "patches", "and", "3.14", "don't", "\n", "🦆"]
    words += ["".join(draw.choices("aeinorst", k=draw.randint(2, 9))) for _ in range(30)]
    return " ".join(draw.choices(words, k=draw.randint(0, 120)))


TEXTS = [text(seed) for seed in range(60)] + ["", "a", "ACGT" * 300]


def write_documents(folder: Path, texts: Sequence[str], per_part: int = 20) -> Path:
    fields = {"doc_id": pa.uint64(), "id": pa.string(), "text": pa.large_string(), "source": pa.string()}
    schema = with_metadata(pa.schema(fields), "documents")
    files = []
    for part, first in enumerate(range(0, max(1, len(texts)), per_part)):
        ids = range(first, min(first + per_part, len(texts)))
        rows = [{"doc_id": i * 7, "id": str(i), "text": texts[i], "source": "web"} for i in ids]
        name = f"part-{part:05d}.arrow"
        write_arrow(folder / name, schema, pa.Table.from_pylist(rows, schema).to_batches(max_chunksize=7))
        files.append(OutputFile.of(folder, name, len(rows)))
    totals = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    write_manifest(folder, "documents", files, totals=totals)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """documents/, bytes/ (a tokenizer), subwords/ (another)."""
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "documents", TEXTS)
    save_byte(folder / "bytes")
    save_subword(folder / "subwords", train_bpe([TEXTS], 300), {})
    return folder


def cut(
    corpus: Path, out: Path, patching: PatchConfig | None, eos: bool = True, executor: Any = None
) -> dict[str, Any]:
    config = TokenizeConfig(append_eos=eos, patching=patching)
    return tokenize(corpus / "documents", corpus / "bytes", config, out, executor or LocalExecutor(1), Silent())


def table_of(out: Path) -> pa.Table:
    names = [file["name"] for file in json.loads((out / "manifest.json").read_text())["files"]]
    return pa.concat_tables(read_arrow(out / name) for name in names)


def files_of(out: Path) -> dict[str, bytes]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if ".state" not in path.parts}


@pytest.fixture(scope="module")
def by_entropy(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("entropy")
    cut(corpus, out, ENTROPY)
    return out


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("scheme", ["byte", "static", "space", "bpe", "entropy"])
def test_patches_divide_the_ids_of_every_document(corpus: Path, tmp_path: Path, scheme: str, eos: bool) -> None:
    more: dict[str, Any] = {"static": {"size": 5}, "bpe": {"tokenizer": str(corpus / "subwords")}}.get(scheme, {})
    config = ENTROPY if scheme == "entropy" else PatchConfig(scheme, **more)
    manifest = cut(corpus, tmp_path, config, eos)
    table = table_of(tmp_path)
    assert table.schema.field("patch_lengths").type == pa.list_(pa.uint16())
    ids, patches = table["input_ids"].to_pylist(), table["patch_lengths"].to_pylist()
    assert [sum(one) for one in patches] == [len(one) for one in ids]
    again = patch_lengths(pa.array(TEXTS), load_patcher(tmp_path / "patcher")).to_pylist()
    assert patches == [[*one, *[1] * eos] for one in again]
    count = sum(map(len, again))
    assert manifest["totals"]["patches"] == count
    assert manifest["totals"]["bytes_per_patch"] == round(manifest["totals"]["bytes"] / count, 4)
    stored = json.loads((tmp_path / "patcher" / "patcher.json").read_text())
    assert manifest["patching"] == read_metadata(table.schema)["patching"] == stored
    assert stored["settings"]["scheme"] == scheme


def test_the_bound_its_model_and_its_sample_are_told_with_the_data(corpus: Path, by_entropy: Path) -> None:
    described = read_metadata(table_of(by_entropy).schema)["patching"]
    totals = json.loads((by_entropy / "manifest.json").read_text())["totals"]
    sample = {"documents": len(TEXTS), "bytes": totals["bytes"]}
    assert described["calibration"] == {"target_bytes": 4.0, **sample}
    assert described["scorer"]["trained_on"] == {
        "documents": len(TEXTS) - TEXTS.count(""),
        "bytes": totals["bytes"],
        "seed": 0,
    }
    assert set(described["scorer"]["sha256"]) == {"short.arrow", "long.arrow"}
    assert 0 < described["settings"]["theta"] < 5.5
    assert totals["bytes_per_patch"] == pytest.approx(4.0, rel=0.1)


def test_without_patching_tokens_are_as_they_were(corpus: Path, tmp_path: Path, by_entropy: Path) -> None:
    manifest = cut(corpus, tmp_path / "plain", None)
    assert table_of(tmp_path / "plain").column_names == ["doc_id", "input_ids", "num_bytes", "source"]
    assert "patching" not in manifest
    assert manifest["config"] == {"append_eos": True}
    cut(corpus, tmp_path / "both", PatchConfig())
    cut(corpus, tmp_path / "both", None)
    assert files_of(tmp_path / "both") == files_of(tmp_path / "plain")
    cut(corpus, tmp_path / "both", ENTROPY)
    assert files_of(tmp_path / "both") == files_of(by_entropy)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, by_entropy: Path, workers: int
) -> None:
    cut(corpus, tmp_path, ENTROPY, executor=local(workers))
    assert files_of(tmp_path) == files_of(by_entropy)


class Stopping(LocalExecutor):
    """Stands for a kill: performs `left` units, over all stages, and no more."""

    def __init__(self, left: int) -> None:
        super().__init__(1)
        self.left = left

    def run(self, call: Callable[[Any], Any], arguments: Any) -> Any:
        for result in super().run(call, arguments):
            yield result
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes(
    corpus: Path, tmp_path: Path, by_entropy: Path
) -> None:
    units = 4 + 1 + 4 + 4  # count, train, calibrate, encode
    for left in (1, 4, 5, 6, 9, 11, units):
        out = tmp_path / str(left)
        cut(corpus, out, PatchConfig("space"))  # what stood there before must not be taken for finished
        with pytest.raises(KeyboardInterrupt):
            cut(corpus, out, ENTROPY, executor=Stopping(left))
        assert (out / "manifest.json").exists() == (left <= 9), "the folder holds other tokens than its manifest says"
        if left <= 9:
            assert json.loads((out / "patcher" / "patcher.json").read_text())["settings"]["scheme"] == "space"
        cut(corpus, out, ENTROPY)
        assert files_of(out) == files_of(by_entropy)


def test_a_finished_run_is_not_done_again(corpus: Path, tmp_path: Path, by_entropy: Path) -> None:
    cut(corpus, tmp_path, ENTROPY)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")}
    assert not (tmp_path / ".state" / "patching" / "counts").exists(), "counts are larger than what is made of them"
    cut(corpus, tmp_path, ENTROPY, executor=None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")} == before
    (tmp_path / "part-00001.arrow").unlink()
    (tmp_path / "patcher" / "scorer" / "long.arrow").write_bytes(b"")
    killed = tmp_path / ".state" / "patching" / "patcher" / "tokenizer"
    killed.mkdir(parents=True)
    (killed / "seqmill.json").write_text("of another patcher, by a run that was killed")
    cut(corpus, tmp_path, ENTROPY)
    assert files_of(tmp_path) == files_of(by_entropy)


def test_the_scorer_of_one_data_set_cuts_another(corpus: Path, tmp_path: Path, by_entropy: Path) -> None:
    theta = load_patcher(by_entropy / "patcher").config.theta
    model = str(by_entropy / "patcher" / "scorer")
    cut(corpus, tmp_path, PatchConfig("entropy", theta=theta, model=model))
    assert table_of(tmp_path).equals(table_of(by_entropy))
    assert (tmp_path / "patcher" / "scorer" / "long.arrow").is_file()


def given_entropies(corpus: Path, model: Path, folder: Path, kind: pa.DataType) -> Path:
    """What another model would leave: here the scorer's own values, part by part, in other record batches."""
    scorer = load_scorer(model)
    for part in sorted((corpus / "documents").glob("part-*")):
        documents = read_arrow(part).combine_chunks()
        offsets, data = offsets_and_bytes(documents["text"].combine_chunks().cast(pa.large_binary()))
        nats = scorer.entropies(data, offsets, 0, int(offsets[-1])).astype(kind.to_pandas_dtype())
        column = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(nats, kind))
        table = pa.table({"doc_id": documents["doc_id"], "entropy": column})
        write_arrow(folder / part.name, table.schema, table.to_batches(max_chunksize=11))
    return folder


def test_entropies_may_come_from_another_model(corpus: Path, tmp_path: Path, by_entropy: Path) -> None:
    model = by_entropy / "patcher" / "scorer"
    given = given_entropies(corpus, model, tmp_path / "given", pa.float32())
    manifest = cut(corpus, tmp_path / "out", PatchConfig("entropy", target_bytes=4.0, entropies=str(given)))
    assert table_of(tmp_path / "out")["patch_lengths"].equals(table_of(by_entropy)["patch_lengths"])
    assert "scorer" not in manifest["patching"]
    assert manifest["patching"]["settings"]["theta"] == load_patcher(by_entropy / "patcher").config.theta
    half = given_entropies(corpus, model, tmp_path / "half", pa.float16())
    rough = cut(corpus, tmp_path / "rough", PatchConfig("entropy", theta=1.5, entropies=str(half)))
    exact = cut(corpus, tmp_path / "exact", PatchConfig("entropy", theta=1.5, entropies=str(given)))
    assert rough["totals"]["patches"] == pytest.approx(exact["totals"]["patches"], rel=0.02)


def test_entropies_of_other_documents_are_refused(corpus: Path, tmp_path: Path, by_entropy: Path) -> None:
    given = given_entropies(corpus, by_entropy / "patcher" / "scorer", tmp_path / "given", pa.float32())
    config = PatchConfig("entropy", theta=1.0, entropies=str(given))
    first = read_arrow(given / "part-00000.arrow").combine_chunks()

    def refused(table: pa.Table, message: str) -> None:
        write_arrow(given / "part-00000.arrow", table.schema, table.to_batches())
        with pytest.raises(UserError, match=message):
            cut(corpus, tmp_path / "out", config)

    refused(first.slice(1), "is not of the documents in .*part-00000.arrow, in their order")
    refused(pa.concat_tables([first, first]), "is not of the documents")
    refused(first.rename_columns(["doc_id", "h"]), "has columns doc_id, h: doc_id and entropy are needed")
    (given / "part-00000.arrow").unlink()
    with pytest.raises(UserError, match=r"part-00000\.arrow is missing; write one Arrow stream a documents part"):
        cut(corpus, tmp_path / "out", config)


def test_what_cannot_be_cut_is_refused_before_any_work(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of kind 'subword'; give a tokenizer of kind 'byte'"):
        tokenize(
            corpus / "documents", corpus / "subwords", TokenizeConfig(patching=PatchConfig()), tmp_path / "a",
            LocalExecutor(1), Silent(),
        )  # fmt: skip
    with pytest.raises(UserError, match="is no scorer of entropies"):
        cut(corpus, tmp_path / "b", PatchConfig("entropy", theta=1.0, model=str(corpus / "bytes")))
    with pytest.raises(UserError, match="is no tokenizer"):
        cut(corpus, tmp_path / "c", PatchConfig("bpe", tokenizer=str(corpus / "documents")))
    write_documents(tmp_path / "documents", ["", ""])
    save_byte(tmp_path / "bytes")
    with pytest.raises(UserError, match="no text to train a scorer"):
        cut(tmp_path, tmp_path / "d", ENTROPY)


def test_a_tokenizer_that_normalises_cannot_cut(corpus: Path, tmp_path: Path) -> None:
    lossy = json.loads((corpus / "subwords" / "tokenizer.json").read_text())
    lossy["normalizer"] = {"type": "Replace", "pattern": {"String": "  "}, "content": " "}
    (tmp_path / "tokenizer.json").write_text(json.dumps(lossy))
    with pytest.raises(UserError, match="do not add up to its bytes"):
        cut(corpus, tmp_path / "out", PatchConfig("bpe", tokenizer=str(tmp_path / "tokenizer.json")))


def test_an_empty_corpus_has_no_patches(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", [])
    save_byte(tmp_path / "bytes")
    manifest = cut(tmp_path, tmp_path / "out", PatchConfig("space"))
    assert manifest["totals"]["patches"] == 0
    assert "patch_lengths" in table_of(tmp_path / "out").column_names


def test_tokens_with_patches_pack_as_tokens_do(corpus: Path, tmp_path: Path, by_entropy: Path) -> None:
    pack(by_entropy, PackConfig(seq_len=128), tmp_path, LocalExecutor(1), Silent())
    assert validate(tmp_path, by_entropy).violations == ()


def test_a_configuration_says_how_to_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'out = "run"\n[ingest]\ninputs = ["x"]\n[tokenizer]\nkind = "byte"\n[tokenize.patching]\nscheme = "entropy"\n'
        'rule = "both"\ntheta_add = 0.5\ntarget_bytes = 6\n[tokenize.patching.ngram]\norder = 5\n'
    )
    patching = load_config(path).tokenize.patching
    assert patching == PatchConfig("entropy", rule="both", theta_add=0.5, target_bytes=6.0, ngram=NgramConfig(order=5))
    with pytest.raises(UserError, match=r"set tokenizer\.kind = 'byte'"):
        load_config(path, ["tokenizer.kind=bpe"])
    with pytest.raises(UserError, match="did you mean 'max_patch'"):
        load_config(path, ["tokenize.patching.maxpatch=3"])


def test_the_command_line_cuts_and_says_how_long_patches_are(
    seqmill: Callable[..., Any], corpus: Path, tmp_path: Path
) -> None:
    command = (
        "tokenize",
        corpus / "documents",
        "--tokenizer",
        corpus / "bytes",
        "--out",
        "out",
        "--quiet",
        "--workers",
        1,
    )
    flags = ("--patching", "entropy", "--patch-rule", "monotonic", "--patch-bytes", 5, "--max-patch", 32)
    figures = json.loads(seqmill(*command, *flags, "--json", cwd=tmp_path).stdout)
    assert figures["bytes_per_patch"] == pytest.approx(figures["bytes"] / figures["patches"], abs=1e-4)
    assert max(max(one) for one in table_of(tmp_path / "out")["patch_lengths"].to_pylist()) <= 32
    for wrong, message in [
        (("--theta", 1), "patching.theta is given, but no scheme: add --patching"),
        (("--patching", "static"), "needs patching.size"),
        (("--patching", "entropy", "--theta", "nan"), "theta = nan: a finite number is needed"),
    ]:
        assert message in seqmill(*command, *wrong, cwd=tmp_path, code=2).stderr
