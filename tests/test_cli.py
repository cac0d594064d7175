import gzip
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from seqmill.packing import validate
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load

Seqmill = Callable[..., Any]
VERBS = (
    "run", "ingest", "filter", "dedup", "substrings", "mix", "split", "tokenize", "pack", "pack-sets", "plan", "train",
    "generate", "score", "export", "import", "inspect", "trace", "bench", "tokenizer", "repeats", "traps",
)  # fmt: skip
SUBVERBS = {
    "tokenizer": ("train", "report"), "repeats": ("histogram", "sample"),
    "traps": ("make", "inject", "verify", "score"),
}  # fmt: skip
NAMES = [*((verb,) for verb in VERBS), *((verb, name) for verb, names in SUBVERBS.items() for name in names)]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def articles(count: int) -> str:
    texts = [" ".join(f"word{(k * 7 + j * j) % 97}" for j in range(60)) for k in range(count)]
    return lines(*({"id": str(k), "text": text, "source": "news"} for k, text in enumerate(texts)))


def one_line_error(done: Any) -> str:
    """The message of a user error, which must be the only thing the command says."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("seqmill: ")
    return line


def test_help_names_every_verb(seqmill: Seqmill, tmp_path: Path) -> None:
    done = seqmill("--help", cwd=tmp_path)
    shown = re.findall(r"^  ([\w-]+) ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert sorted(shown) == sorted(VERBS)


@pytest.mark.parametrize("verb", NAMES, ids=" ".join)
def test_every_verb_explains_itself(seqmill: Seqmill, tmp_path: Path, verb: tuple[str, ...]) -> None:
    done = seqmill(*verb, "--help", cwd=tmp_path)
    assert "Usage: " in done.stdout


def test_help_comes_without_the_heavy_libraries(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['seqmill', '--help']\nfrom seqmill.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print([m for m in ('pyarrow', 'numpy', 'numba', 'torch', 'ray', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_stages_chain_from_raw_text_to_rows(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(40) + articles(3))
    stages = [
        ("ingest", "raw.jsonl", "--out", "documents"),
        ("dedup", "documents", "--out", "clean"),
        ("tokenizer", "train", "clean", "--vocab-size", 400, "--out", "tokenizer"),
        ("tokenize", "clean", "--tokenizer", "tokenizer", "--out", "tokens"),
        ("pack", "tokens", "--seq-len", 128, "--out", "packed"),
    ]
    printed = {}
    for stage in stages:
        done = seqmill(*stage, "--workers", 1, "--json", "--quiet", cwd=tmp_path)
        printed[stage[0]] = json.loads(done.stdout)
        assert {"documents", "bytes", "quarantined", "seconds"} <= printed[stage[0]].keys()
        assert done.stderr == ""
    assert printed["ingest"]["documents"] == 43
    assert printed["dedup"]["documents"] == 40
    assert printed["tokenize"]["documents"] == 40
    assert printed["pack"]["tokens"] == printed["tokenize"]["tokens"]
    assert validate(tmp_path / "packed", tmp_path / "tokens").violations == ()
    assert "rows" in seqmill("inspect", "packed", "--validate", cwd=tmp_path).stdout


def test_a_stage_takes_raw_files_too(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(5) + articles(2) + "{}\n" * 0)
    done = seqmill("dedup", "raw.jsonl", "--out", "clean", "--workers", 1, "--json", "--quiet", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert (figures["documents"], figures["quarantined"]) == (5, 0)


def test_dna_becomes_k_mers_and_comes_back(seqmill: Seqmill, tmp_path: Path) -> None:
    genes = ["ACGTACGTAC", "ACGTNNacgtTTTT", ""]
    (tmp_path / "genes.jsonl").write_text(lines(*({"text": gene} for gene in genes)))
    command = ("tokenizer", "train", "genes.jsonl", "--kind", "kmer", "--k", 4, "--remainder", "pad", "--out", "kmers")
    made = json.loads(seqmill(*command, "--quiet", "--json", cwd=tmp_path).stdout)
    assert (made["kind"], made["vocab_size"]) == ("kmer", 256 + 2 + 3 + 4**4)
    seqmill("tokenize", "genes.jsonl", "--tokenizer", "kmers", "--out", "tokens", "--quiet", cwd=tmp_path)
    ids = read_arrow(tmp_path / "tokens" / "part-00000.arrow")["input_ids"].combine_chunks()
    found = load(tmp_path / "tokens" / "tokenizer").decode(ids).to_pylist()
    assert found == [gene.encode() for gene in genes if gene]
    assert [len(one) for one in ids.to_pylist()] == [2 + 2 + 1, 1 + 8 + 2 + 1]  # the end of the document included
    wrong = seqmill(*command[:-3], "drop", "--out", "x", "--quiet", cwd=tmp_path, code=2)
    assert "choose one of nucleotide, pad" in one_line_error(wrong)


def test_bytes_need_no_training(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(3))
    seqmill("tokenizer", "train", "raw.jsonl", "--kind", "byte", "--out", "bytes", "--quiet", cwd=tmp_path)
    done = seqmill(
        "tokenize", "raw.jsonl", "--tokenizer", "bytes", "--out", "t", "--json", "--quiet", "--workers", 1, cwd=tmp_path
    )
    figures = json.loads(done.stdout)
    assert figures["tokens"] == figures["bytes"] + 3


def test_a_changed_byte_is_found_by_inspection(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(5))
    seqmill("ingest", "raw.jsonl", "--out", "documents", "--workers", 1, "--quiet", cwd=tmp_path)
    part = tmp_path / "documents" / "part-00000.arrow"
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    seqmill("inspect", "documents", cwd=tmp_path)
    done = seqmill("inspect", "documents", "--validate", cwd=tmp_path, code=1)
    assert "part-00000.arrow: the file does not match the hash" in done.stdout


def test_train_and_generate_work_on_any_packed_folder(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(30))
    quiet = ("--workers", 1, "--quiet")
    seqmill("tokenizer", "train", "raw.jsonl", "--kind", "byte", "--out", "bytes", *quiet, cwd=tmp_path)
    seqmill("tokenize", "raw.jsonl", "--tokenizer", "bytes", "--out", "tokens", *quiet, cwd=tmp_path)
    seqmill("pack", "tokens", "--seq-len", 64, "--out", "packed", *quiet, cwd=tmp_path)
    train = ("train", "packed", "--out", "model", "--batch-tokens", 256, "--checkpoint-every", 2, "--device", "cpu")
    done = seqmill(*train, "--steps", 4, "--json", "--quiet", cwd=tmp_path)
    log = [json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert {"step", "loss", "tokens", "seconds"} <= log[0].keys()
    assert json.loads(done.stdout)["tokens_seen"] == log[-1]["tokens"]
    (tmp_path / "prompts.txt").write_text("word1\nword2 word3\n")
    flags = ("--prompts", "prompts.txt", "--max-new-tokens", 5, "--json")
    samples = json.loads(seqmill("generate", "model", *flags, cwd=tmp_path).stdout)["samples"]
    assert [sample["prompt"] for sample in samples] == ["word1", "word2 word3"]
    step = "model/checkpoints/step-00000004"
    assert json.loads(seqmill("generate", step, *flags, cwd=tmp_path).stdout)["samples"] == samples
    one_line_error(seqmill("train", "tokens", "--out", "x", "--quiet", cwd=tmp_path, code=2))


def config(tmp_path: Path, inputs: str, more: str = "") -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'out = "run"\n[ingest]\ninputs = ["{inputs}"]\n{more}\n[tokenizer]\nkind = "byte"\n')
    return path


def unlike_articles(count: int) -> str:
    """Records that compress badly, so that half a compressed file holds about half of them."""
    draw = random.Random(0)
    return lines(*({"id": str(k), "text": draw.randbytes(200).hex()} for k in range(count)))


def truncated_gz(path: Path) -> Path:
    data = gzip.compress(unlike_articles(2000).encode())
    (path / "bad.jsonl.gz").write_bytes(data[: len(data) // 2])
    return path / "bad.jsonl.gz"


def truncated_zst(path: Path) -> Path:
    data = zstandard.compress(unlike_articles(2000).encode())
    (path / "bad.jsonl.zst").write_bytes(data[: len(data) // 2])
    return path / "bad.jsonl.zst"


def invalid_utf8(path: Path) -> Path:
    (path / "bad.jsonl").write_bytes(articles(10).encode() + b'{"text": "\xff\xfe"}\n')
    return path / "bad.jsonl"


def no_text_field(path: Path) -> Path:
    (path / "bad.jsonl").write_text(articles(10) + '{"body": "x"}\n')
    return path / "bad.jsonl"


@pytest.mark.parametrize("damage", [truncated_gz, truncated_zst, invalid_utf8, no_text_field])
def test_bad_input_is_refused_in_one_line_or_counted_when_allowed(
    seqmill: Seqmill, tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    file = damage(tmp_path)
    refused = seqmill("run", config(tmp_path, file.name), "--quiet", "--workers", 1, cwd=tmp_path, code=2)
    message = one_line_error(refused)
    assert file.name in message
    assert "max_bad_fraction" in message
    assert not (tmp_path / "run" / "documents" / "manifest.json").exists()
    allowed = config(tmp_path, file.name, "max_bad_fraction = 0.5")
    done = seqmill("run", allowed, "--quiet", "--workers", 1, "--json", cwd=tmp_path)
    (reason, count), *others = json.loads(done.stdout)["funnel"][0]["reasons"].items()
    assert reason.startswith("bad: ")
    assert (count["documents"], others) == (1, [])
    quarantined = [json.loads(line) for line in next((tmp_path / "run/documents/quarantine").iterdir()).open()]
    assert [entry["file"] for entry in quarantined] == [file.name]


def test_an_empty_file_gives_no_documents(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    done = seqmill("run", config(tmp_path, "empty.jsonl"), "--quiet", "--workers", 1, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (report["documents"], report["tokens"], report["packing"]["rows"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.toml"), "there is no configuration file none.toml"),
        (("ingest", "nowhere.jsonl", "--out", "x"), "nowhere.jsonl does not exist"),
        (("pack", "nowhere", "--out", "x"), "nowhere has no manifest.json"),
        (("tokenize", "a.jsonl", "--tokenizer", "nowhere", "--out", "x"), "nowhere is no tokenizer"),
        (("train", "nowhere", "--out", "x"), "nowhere is no folder"),
        (("train", "nowhere", "--out", "x", "--model", "huge"), "there is no such preset"),
        (("generate", "nowhere", "--prompts", "none.txt"), "there is no prompts file"),
        (("ingest", "a.jsonl", "--out", "x", "--executor", "slurm"), "choose one of local, ray"),
        (("dedup", "a.jsonl", "--out", "x", "--threshold", "7"), "dedup.threshold = 7.0"),
        (("pack", "a.jsonl", "--out", "x", "--overflow", "lose"), "choose one of split"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    seqmill: Seqmill, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(articles(3))
    quiet = () if arguments[0] == "generate" else ("--quiet",)
    assert message in one_line_error(seqmill(*arguments, *quiet, cwd=tmp_path, code=2))


def test_an_unknown_key_fails_before_any_work(seqmill: Seqmill, tmp_path: Path) -> None:
    path = config(tmp_path, "a.jsonl", "text_feild = 'x'")
    message = one_line_error(seqmill("run", path, cwd=tmp_path, code=2))
    assert "unknown key 'ingest.text_feild'" in message
    assert "did you mean 'text_field'" in message
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_in_one_line_and_the_same_command_finishes_later(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(2000))
    path = config(tmp_path, "raw.jsonl")
    limit = 1 << 18  # bytes a file may have: the first part is larger
    done = subprocess.run(
        [sys.executable, "-m", "seqmill", "run", str(path), "--workers", "1", "--quiet"],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "File too large" in one_line_error(done)
    assert list((tmp_path / "run").rglob("part-*")) == []
    seqmill("run", path, "--workers", 1, "--quiet", cwd=tmp_path)
    assert read_arrow(tmp_path / "run" / "documents" / "part-00000.arrow").num_rows == 2000


def test_a_second_run_in_the_same_folder_is_refused(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(3))
    hold = "import sys; from pathlib import Path; from seqmill.storage import only_writer\n"
    hold += "with only_writer(Path('run')): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        message = one_line_error(seqmill("run", config(tmp_path, "raw.jsonl"), cwd=tmp_path, code=2))
        holder.kill()
    assert "another seqmill process is writing to" in message


def test_progress_goes_to_stderr_and_results_to_stdout(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(3))
    began = time.monotonic()
    done = seqmill("ingest", "raw.jsonl", "--out", "documents", "--workers", 1, "--json", cwd=tmp_path)
    assert "ingest: 1/1 in" in done.stderr
    assert 0 < json.loads(done.stdout)["seconds"] < time.monotonic() - began


def test_a_separator_of_any_script_cuts_documents(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one—two\tthree", encoding="utf-8")
    for separator, documents in (("—", 2), (r"\t", 2), ("–", 1)):
        flags = (
            "--separator",
            separator,
            "--out",
            f"out{documents}{len(separator)}",
            "--workers",
            1,
            "--json",
            "--quiet",
        )
        assert json.loads(seqmill("ingest", "a.txt", *flags, cwd=tmp_path).stdout)["documents"] == documents
    refused = seqmill("ingest", "a.txt", "--separator", "\\", "--out", "x", "--quiet", cwd=tmp_path, code=2)
    assert "no valid escape sequence" in one_line_error(refused)


def test_outputs_go_to_folders_of_this_machine(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(2))
    for out, message in (
        ("s3://bucket/run", "not to a URL"),
        ("raw.jsonl", "raw.jsonl"),
        ("raw.jsonl/deep", "raw.jsonl"),
    ):
        refused = seqmill("ingest", "raw.jsonl", "--out", out, "--quiet", cwd=tmp_path, code=2)
        assert message in one_line_error(refused)


def test_a_folder_never_keeps_a_tokenizer_that_did_not_make_its_ids(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(20))
    quiet = ("--workers", 1, "--quiet")
    seqmill("tokenizer", "train", "raw.jsonl", "--kind", "byte", "--out", "bytes", *quiet, cwd=tmp_path)
    seqmill("tokenizer", "train", "raw.jsonl", "--vocab-size", 300, "--out", "bpe", *quiet, cwd=tmp_path)
    tokenize = ("tokenize", "raw.jsonl", "--out", "tokens", *quiet)
    seqmill(*tokenize, "--tokenizer", "bytes", cwd=tmp_path)
    description = tmp_path / "bpe" / "seqmill.json"
    described = json.loads(description.read_text())
    description.write_text(json.dumps({**described, "special_ids": {}}))
    assert "no end-of-document id" in one_line_error(seqmill(*tokenize, "--tokenizer", "bpe", cwd=tmp_path, code=2))
    seqmill("pack", "tokens", "--out", "packed", *quiet, cwd=tmp_path)  # the folder is as it was
    description.write_text(json.dumps({**described, "special_ids": {"eos": 7}}))
    seqmill(*tokenize, "--tokenizer", "bpe", cwd=tmp_path)
    assert {ids[-1] for ids in read_arrow(tmp_path / "tokens/part-00000.arrow")["input_ids"].to_pylist()} == {7}
    description.write_text(json.dumps(described))
    seqmill(*tokenize, "--tokenizer", "bpe", cwd=tmp_path)
    assert {ids[-1] for ids in read_arrow(tmp_path / "tokens/part-00000.arrow")["input_ids"].to_pylist()} == {0}
    shutil.copytree(tmp_path / "bytes", tmp_path / "tokens" / "tokenizer", dirs_exist_ok=True)
    refused = seqmill("pack", "tokens", "--out", "packed", "--quiet", cwd=tmp_path, code=2)
    assert "not the tokenizer that made these tokens" in one_line_error(refused)


def test_a_deduplicated_folder_can_be_deduplicated_again(seqmill: Seqmill, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text(articles(6) + articles(2))
    seqmill("dedup", "raw.jsonl", "--out", "once", "--workers", 1, "--quiet", cwd=tmp_path)
    seqmill("dedup", "once", "--out", "twice", "--workers", 1, "--quiet", cwd=tmp_path)
    once, twice = (read_arrow(tmp_path / name / "part-00000.arrow") for name in ("once", "twice"))
    assert once.column_names == twice.column_names
    assert sorted(once["cluster_size"].to_pylist()) == [1, 1, 1, 1, 2, 2]
    assert twice["cluster_size"].to_pylist() == [1] * 6
