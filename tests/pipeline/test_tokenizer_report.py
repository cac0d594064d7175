"""The report on tokenizers against figures computed document by document in plain Python with `tokenizers`."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pools import local
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.records import Fields, document_schema
from seqmill.pipeline.sampling import drawn
from seqmill.pipeline.tokenizer_page import print_report, write_page
from seqmill.pipeline.tokenizer_report import NO_GROUP, ReportConfig, tokenizer_report
from seqmill.storage import read_arrow, write_arrow
from seqmill.tokenizers_ext import KmerConfig, save_byte, save_kmer, save_subword, train_bpe

ROOT = Path(__file__).parents[2]
LANGUAGES = ("glg", "est", "vie", "cmn_hans", "kor")
CONFIG = ReportConfig(group_by="lang", timings=False)

Count = Callable[[str], list[int]]


def records() -> list[dict[str, Any]]:
    """The first paragraphs of a text in five languages, and documents that are hard on arithmetic."""
    made: list[dict[str, Any]] = []
    for language in LANGUAGES:
        text = (ROOT / "examples" / "corpus" / "udhr" / f"{language}.txt").read_text(encoding="utf-8")
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()][:12]
        made += [{"text": text, "lang": language, "article": str(n)} for n, text in enumerate(paragraphs)]
    made += [{"text": " \n\t ", "lang": "blank", "article": "0"}, {"text": "", "lang": "empty"}]
    made += [{"text": "", "lang": "est"}, {"text": "ACGT" * 9 + "N", "lang": "<b>dna</b> $x_1$"}]
    return [*made, {"text": "the end", "article": "99"}, {"text": "e\u0301 👩\u200d👧 the", "lang": "emoji"}]


def write_documents(folder: Path, parts: list[list[dict[str, Any]]]) -> None:
    """A documents folder with columns for language and article; every part in batches of seven."""
    fields = Fields("text", "id", "source", "made", ("lang", "article"), None)
    files = []
    for number, part in enumerate(parts):
        rows = [{"source": "made", **record, "doc_id": (number << 40) + at} for at, record in enumerate(part)]
        table = pa.Table.from_pylist(rows, document_schema(fields))
        write_arrow(folder / f"part-{number:05}.arrow", table.schema, table.to_batches(max_chunksize=7))
        files.append(OutputFile.of(folder, f"part-{number:05}.arrow", len(rows)))
    texts = [record["text"].encode() for part in parts for record in part]
    write_manifest(folder, "documents", files, totals={"documents": len(texts), "bytes": sum(map(len, texts))})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in two parts, and four tokenizers: of subwords, bytes, k-mers, and one that loses white space."""
    out = tmp_path_factory.mktemp("report")
    write_documents(out / "documents", [records()[:30], records()[30:]])
    save_subword(out / "bpe", train_bpe([[record["text"] for record in records()]], 700), {})
    save_byte(out / "bytes")
    save_kmer(out / "kmers", KmerConfig(3))
    words = Tokenizer(models.WordLevel({"the": 0, "end": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (out / "words.json").write_text(words.to_str())
    return out


def of_tokenizers(path: Path) -> Count:
    tokenizer = Tokenizer.from_str(path.read_text())
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def expected(texts: list[str], encode: Count, vocab_size: int) -> dict[str, Any]:
    """Figures of some documents, as the definitions read."""
    ids = Counter(id_ for text in texts for id_ in encode(text))
    words = [word.decode() for text in texts for word in text.encode().split()]
    num_bytes, tokens = sum(len(text.encode()) for text in texts), ids.total()
    shares = [n / tokens for n in ids.values()]
    split = [min(len(encode(word)), len(encode(" " + word))) > 1 for word in words]
    return {
        "documents": len(texts),
        "bytes": num_bytes,
        "characters": sum(map(len, texts)),
        "words": len(words),
        "tokens": tokens,
        "bytes_per_token": num_bytes / tokens if tokens else None,
        "tokens_per_character": tokens / sum(map(len, texts)) if tokens else None,
        "tokens_per_word": tokens / len(words) if words else None,
        "split_words": sum(split) / len(words) if words else None,
        "ids_used": len(ids),
        "vocabulary_used": len(ids) / vocab_size,
        "renyi_efficiency": math.log(sum(p**2.5 for p in shares)) / -1.5 / math.log(vocab_size) if tokens else None,
        "unigram_bits_per_byte": -sum(p * math.log2(p) for p in shares) * tokens / num_bytes if tokens else None,
    }


def report_on(folder: Path, names: Iterable[str], config: ReportConfig, out: Path, workers: int = 1) -> dict[str, Any]:
    paths = [str(folder / name) for name in names]
    return tokenizer_report(folder / "documents", paths, config, out, local(workers), Silent())


@pytest.fixture(scope="session")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_on(folder, ("bpe", "bytes", "words.json"), CONFIG, tmp_path_factory.mktemp("out"))


def test_figures_equal_those_of_plain_python(folder: Path, report: dict[str, Any]) -> None:
    encoders = [of_tokenizers(folder / "bpe" / "tokenizer.json"), lambda text: list(text.encode())]
    by_group: dict[str, list[str]] = {}
    for record in records():
        by_group.setdefault(record.get("lang", NO_GROUP), []).append(record["text"])
    for entry, encode in zip(report["figures"], encoders, strict=False):
        assert set(entry["groups"]) == set(by_group)
        groups = {**by_group, None: [record["text"] for record in records()]}
        for name, texts in groups.items():
            found = entry["all"] if name is None else entry["groups"][name]
            wanted = expected(texts, encode, entry["vocab_size"])
            assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-6), name
            assert (found["exact"], found["inexact"]) == (1, None)


def test_a_tokenizer_that_loses_something_is_named_with_the_first_example(report: dict[str, Any]) -> None:
    lossy = report["figures"][2]
    assert lossy["groups"][NO_GROUP]["exact"] == 1  # "the end" comes back
    assert lossy["all"]["exact"] == pytest.approx(3 / len(records()), abs=1e-6)  # and the two empty documents
    example = lossy["groups"]["emoji"]["inexact"]
    assert (example["byte"], example["text"], example["decoded"]) == (
        0,
        "e\u0301 👩\u200d👧 the",
        "[UNK] [UNK] [UNK] [U",
    )


def test_a_blank_group_has_figures_but_no_words(report: dict[str, Any]) -> None:
    blank = report["figures"][0]["groups"]["blank"]
    assert (blank["documents"], blank["bytes"], blank["words"]) == (1, 4, 0)
    assert (blank["tokens_per_word"], blank["split_words"]) == (None, None)


def test_scripts_without_spaces_are_told(report: dict[str, Any]) -> None:
    groups = report["figures"][0]["groups"]
    assert groups["cmn_hans"]["unspaced"] > 0.8
    assert groups["kor"]["unspaced"] == groups["vie"]["unspaced"] == 0


def test_the_longest_token_is_the_longest_that_occurs(folder: Path, report: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "bpe" / "tokenizer.json"))
    encode = of_tokenizers(folder / "bpe" / "tokenizer.json")
    for group in ("glg", "emoji"):
        ids = {id_ for record in records() if record.get("lang") == group for id_ in encode(record["text"])}
        longest = min(ids, key=lambda id_: (-len(tokenizer.id_to_token(id_)), id_))  # one character a byte
        found = report["figures"][0]["groups"][group]["longest_token"]
        assert (found["id"], found["bytes"]) == (longest, len(tokenizer.id_to_token(longest)))


def test_figures_do_not_depend_on_workers_or_on_what_was_done_before(
    folder: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    names = ("bpe", "bytes", "words.json")
    assert report_on(folder, names, CONFIG, tmp_path / "o", workers=2) == report
    first = (tmp_path / "o" / "report.json").read_bytes()
    assert json.loads(first) == report
    records_before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o" / ".state").glob("*.json")}
    next(iter(records_before)).unlink()
    assert report_on(folder, names, CONFIG, tmp_path / "o") == report
    assert (tmp_path / "o" / "report.json").read_bytes() == first
    unchanged = [path for path, time in records_before.items() if path.stat().st_mtime_ns == time]
    assert len(unchanged) == len(records_before) - 1


def test_every_kind_of_tokenizer_is_reported_on(folder: Path, tmp_path: Path) -> None:
    (entry,) = report_on(folder, ["kmers"], CONFIG, tmp_path)["figures"]
    assert (entry["kind"], entry["all"]["exact"]) == ("kmer", 1)
    dna = entry["groups"]["<b>dna</b> $x_1$"]
    assert (dna["bytes"], dna["tokens"], dna["longest_token"]["bytes"]) == (37, 13, 3)


def test_parity_of_groups_that_are_the_same_content_is_the_ratio_of_their_tokens(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, parallel=True, reference="glg")
    groups = report_on(folder, ["bpe"], config, tmp_path)["figures"][0]["groups"]
    for name, figures in groups.items():
        assert figures["parity"] == pytest.approx(figures["tokens"] / groups["glg"]["tokens"], abs=1e-6), name
    assert groups["glg"]["parity"] == 1


def test_parity_by_a_field_compares_what_both_groups_have(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, parallel_field="article", reference="est")
    groups = report_on(folder, ["bpe"], config, tmp_path)["figures"][0]["groups"]
    encode = of_tokenizers(folder / "bpe" / "tokenizer.json")
    tokens: dict[str, Counter[str]] = {}
    for record in records():
        if "article" in record:
            counted = tokens.setdefault(record.get("lang", NO_GROUP), Counter())
            counted[record["article"]] += len(encode(record["text"]))
    for name, figures in groups.items():
        both = set(tokens.get(name, {})) & set(tokens["est"])
        if not both:
            assert figures["parity"] is None
            continue
        wanted = sum(tokens[name][each] for each in both) / sum(tokens["est"][each] for each in both)
        assert figures["parity"] == pytest.approx(wanted, abs=1e-6), name
    assert groups[NO_GROUP]["parity"] is groups["emoji"]["parity"] is None
    assert groups["blank"]["parity"] > 0


def test_a_sample_holds_the_documents_that_their_ids_choose(folder: Path, tmp_path: Path) -> None:
    report = report_on(folder, ["bytes"], replace(CONFIG, sample_bytes=8000), tmp_path)
    total = sum(len(record["text"].encode()) for record in records())
    parts = sorted((folder / "documents").glob("part-*.arrow"))
    chosen = [
        len(text.encode())
        for table in map(read_arrow, parts)
        for text, taken in zip(
            table["text"].to_pylist(), drawn(table["doc_id"].to_numpy(), 8000 / total, 0), strict=True
        )
        if taken
    ]
    assert 0 < len(chosen) < len(records())
    assert report["corpus"]["sampled"] == {"documents": len(chosen), "bytes": sum(chosen)}
    assert (report["corpus"]["documents"], report["corpus"]["bytes"]) == (len(records()), total)


def test_no_documents_give_no_figures_and_a_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(tmp_path / "documents", [[]])
    report = tokenizer_report(
        tmp_path / "documents", [str(folder / "bpe")], ReportConfig(), tmp_path / "o", LocalExecutor(1), Silent()
    )
    (entry,) = report["figures"]
    assert entry["groups"] == {}
    assert {key for key, value in entry["all"].items() if value not in (0, None, [], ())} == set()
    write_page(report, tmp_path / "page.html")
    print_report(report)
    assert "all together" in capsys.readouterr().out


def test_timings_stand_apart_and_leave_figures_alone(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    timed = report_on(folder, ("bpe", "bytes", "words.json"), replace(CONFIG, timings=True), tmp_path)
    timings = timed.pop("timings")
    assert timed["figures"] == report["figures"]
    assert set(timings["tokenizers"]) == {"bpe", "bytes", "words.json"}
    assert timings["sample_bytes"] == report["corpus"]["bytes"]
    for speeds in timings["tokenizers"].values():
        assert all(speeds["all"][f"{work}_{state}"] > 0 for work in ("encode", "decode") for state in ("cold", "warm"))
        assert speeds["groups"] == {}  # all too small for a clock


@pytest.mark.parametrize(
    ("change", "tokenizers", "message"),
    [
        ({"group_by": "colour"}, ["bytes"], "no column 'colour' .it has doc_id, id, text, source, lang, article"),
        ({"parallel_field": "verse", "reference": "est"}, ["bytes"], "no column 'verse'"),
        ({"parallel": True, "reference": "en"}, ["bytes"], "reference = 'en' is none of the groups; choose from"),
        ({"parallel": True, "reference": "est", "sample_bytes": 10}, ["bytes"], "sample_bytes = 10 leaves out"),
        ({}, ["bytes", "bytes"], "bytes is named twice"),
        ({}, [], "at least one tokenizer"),
        ({}, ["nothing"], "is no tokenizer"),
    ],
)
def test_what_cannot_be_told_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], tokenizers: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        report_on(folder, tokenizers, replace(CONFIG, **change), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_bytes": 0}, "sample_bytes = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"parallel": True}, "reference = None: parity needs both"),
        ({"reference": "en"}, "reference = 'en': parity needs both"),
        ({"parallel": True, "parallel_field": "x", "reference": "en"}, "exclude each other"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReportConfig(**settings)


def test_a_column_with_too_many_values_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqmill.pipeline.tokenizer_report.MOST_GROUPS", 5)
    with pytest.raises(UserError, match=r"the column 'lang' has [6-9] values or more, a report tells up to 5 apart"):
        report_on(folder, ["bytes"], CONFIG, tmp_path)


def test_tokenizers_of_the_same_name_are_told_apart_by_their_paths(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").symlink_to(folder / "bytes")
    paths = [str(folder / "bytes"), str(tmp_path / "bytes")]
    report = tokenizer_report(folder / "documents", paths, CONFIG, tmp_path / "o", LocalExecutor(1), Silent())
    assert [entry["tokenizer"] for entry in report["figures"]] == paths


class Tags(HTMLParser):
    """Counts tags, and collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_is_whole_in_itself_and_escapes_names(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, parallel=True, reference="glg")
    report = report_on(folder, ("bpe", "words.json"), config, tmp_path)
    write_page(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Tags()
    parsed.feed(page)
    assert parsed.tags["svg"] == 3
    assert parsed.tags["table"] == 2
    assert (parsed.tags["b"], parsed.tags["script"], parsed.tags["link"], parsed.tags["img"]) == (0, 0, 0, 0)
    assert all(target.startswith("#") for target in parsed.fetched)
    assert "&lt;b&gt;dna&lt;/b&gt; $x_1$" in page
    assert "words.json is not lossless: document 0" in page
    write_page(report, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_screen_shows_every_figure_however_narrow_it_is(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_report(report)
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if "all together" in line)
    everything = report["figures"][0]["all"]
    assert re.split(r"\s{2,}", line.strip())[1:5] == [
        "bpe",
        f"{everything['documents']}",
        f"{everything['bytes']:,}",
        f"{everything['tokens']:,}",
    ]
    assert f"{everything['bytes_per_token']:.3f}" in line
    chinese = report["figures"][0]["groups"]["cmn_hans"]
    assert f"{chinese['tokens_per_word']:.3f}*" in shown
    assert "words.json is not lossless: document 0, byte" in shown
