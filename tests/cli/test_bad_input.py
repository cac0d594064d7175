"""What is wrong with an input or an output folder is one line, whichever command meets it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing import PackedDataset
from seqmill.pipeline.execution import Unit, run_units
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.storage import read_arrow, read_json, write_arrow, write_json
from work_functions import write_text

Call = Callable[..., tuple[int, str, str]]
QUIET = ("--workers", "1", "--quiet")


@pytest.fixture
def tokens(seqmill_here: Call) -> Path:
    """A tokens folder of bytes in the working directory, and "packed", made of it."""
    Path("a.jsonl").write_text("".join(json.dumps({"text": "word " * (1 + k % 7)}) + "\n" for k in range(40)))
    assert seqmill_here("tokenizer", "train", "a.jsonl", "--kind", "byte", "--out", "bytes", *QUIET)[0] == 0
    assert seqmill_here("tokenize", "a.jsonl", "--tokenizer", "bytes", "--out", "tokens", *QUIET)[0] == 0
    assert seqmill_here("pack", "tokens", "--seq-len", "64", "--out", "packed", *QUIET)[0] == 0
    return Path("tokens")


def refusal(done: tuple[int, str, str]) -> str:
    """The one line of a command that was refused."""
    code, out, err = done
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line


def test_rows_need_room(seqmill_here: Call, tokens: Path) -> None:
    refused = refusal(seqmill_here("pack", str(tokens), "--seq-len", "0", "--out", "x", *QUIET))
    assert refused == "seqmill: pack.seq_len = 0: a row needs room for at least 1 token"
    assert not Path("x").exists()


def with_token(folder: Path, token: int) -> None:
    """Put `token` into the third document, and describe the new file in the manifest."""
    (part,) = folder.glob("part-*.arrow")
    table = read_arrow(part)
    lists = table["input_ids"].to_pylist()
    lists[2][1] = token
    table = table.set_column(1, "input_ids", pa.array(lists, table.schema.field("input_ids").type))
    manifest = read_json(folder / "manifest.json")
    entries = {k: v for k, v in manifest.items() if k not in ("format_version", "kind", "fingerprint", "files")}
    rows = write_arrow(part, table.schema, table.to_batches())
    write_manifest(folder, "tokens", [OutputFile.of(folder, part.name, rows)], **entries)


def test_tokens_outside_the_vocabulary_are_refused_and_named(seqmill_here: Call, tokens: Path) -> None:
    with_token(tokens, 300)
    refused = refusal(seqmill_here("pack", str(tokens), "--seq-len", "64", "--out", "x", *QUIET))
    assert "the tokens hold id 300, but their vocabulary has 258; tokenize again" in refused
    assert not Path("x/manifest.json").exists()
    code, out, _ = seqmill_here("inspect", str(tokens), "--validate")
    assert code == 1
    assert "I3: part-00000.arrow, row 2: a token is not below the vocabulary of 258 (1 in this file)" in out


def test_shards_that_do_not_match_their_manifest_are_refused_and_named(seqmill_here: Call, tokens: Path) -> None:
    (part,) = tokens.glob("part-*.arrow")
    whole = part.read_bytes()
    part.unlink()
    part.write_bytes(whole[:-64])
    refused = refusal(seqmill_here("pack", str(tokens), "--seq-len", "64", "--out", "x", *QUIET))
    assert f"the manifest lists {len(whole)} bytes, found {len(whole) - 64}; run the stage" in refused
    code, out, _ = seqmill_here("inspect", str(tokens), "--validate")
    assert code == 1
    assert "I10: part-00000.arrow: the file does not match the hash in the manifest" in out

    manifest = read_json(Path("packed/manifest.json"))
    manifest["files"][0]["rows"] += 1
    write_json(Path("packed/manifest.json"), manifest)
    with pytest.raises(UserError, match=r"rows, the manifest lists \d+; pack again"):
        PackedDataset("packed")
    assert (
        "manifest.json: its entries do not match its fingerprint" in seqmill_here("inspect", "packed", "--validate")[1]
    )


def test_a_missing_shard_is_refused_and_named(seqmill_here: Call, tokens: Path) -> None:
    for folder in (tokens, Path("packed")):
        next(folder.glob("part-*.arrow")).unlink()
    refused = refusal(seqmill_here("pack", str(tokens), "--seq-len", "64", "--out", "x", *QUIET))
    assert "part-00000.arrow: the manifest lists" in refused
    assert "bytes, found no; run the stage that wrote it again" in refused
    flags = ("--out", "t", "--model", "tiny", "--steps", "1", "--batch-tokens", "64", "--device", "cpu", "--quiet")
    assert "part-00000.arrow: the manifest lists" in refusal(seqmill_here("train", "packed", *flags))
    code, out, err = seqmill_here("inspect", "packed", "--validate", "--json")
    assert (code, err) == (1, "")
    assert "I10: part-00000.arrow: the file is missing (1 in this file)" in json.loads(out)["faults"]


HOLD = """import sys; from pathlib import Path; from seqmill.storage import only_writer
with only_writer(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); sys.stdin.read()"""


@pytest.mark.parametrize("lock", [".lock", ".state/.lock"], ids=["another command", "another stage in the folder"])
def test_two_writers_of_a_folder_are_refused_and_a_killed_one_blocks_nobody(
    seqmill_here: Call, tokens: Path, lock: str
) -> None:
    arguments = [sys.executable, "-c", HOLD, "packed", lock]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        again = ("pack", str(tokens), "--seq-len", "32", "--out", "packed", *QUIET)
        assert "another seqmill process is writing to" in refusal(seqmill_here(*again))
        leftover = Path("packed/part-00000.arrow.1.tmp")
        leftover.touch()  # not a leftover while the other writes
        assert seqmill_here(*again)[0] == 2
        assert leftover.exists()
        other.kill()
    assert seqmill_here(*again)[0] == 0
    assert not leftover.exists()
    assert seqmill_here("inspect", "packed", "--validate")[0] == 0


def test_a_stage_called_from_python_holds_its_folder_too(tmp_path: Path) -> None:
    units = [Unit("part-0", {"name": "part-0", "text": "a", "marks": str(tmp_path)})]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out"), ".state/.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(UserError, match=r"another seqmill process is writing to .*out; wait"):
            run_units("test", write_text, units, tmp_path / "out", LocalExecutor(1), Silent())
        other.kill()
    assert len(run_units("test", write_text, units, tmp_path / "out", LocalExecutor(1), Silent())) == 1


def test_samples_that_cannot_be_are_refused_before_a_run_begins(seqmill_here: Call) -> None:
    tables = '[ingest]\ninputs = ["a.jsonl"]\n[train]\nsteps = 1\n[generate]\nprompts = ["a"]\nbeams = 2\nsamples = 3\n'
    Path("run.toml").write_text(f'out = "run"\n{tables}')
    Path("a.jsonl").write_text('{"text": "word"}\n')
    assert "samples = 3 of beams = 2" in refusal(seqmill_here("run", "run.toml", "--quiet"))
    assert not Path("run").exists()
