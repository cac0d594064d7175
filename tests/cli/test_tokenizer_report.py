import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def test_tokenizers_are_compared_from_raw_files_by_a_field_of_the_records(seqmill: Any, tmp_path: Path) -> None:
    texts = {name: (ROOT / f"examples/corpus/udhr/{name}.txt").read_text(encoding="utf-8") for name in ("glg", "kor")}
    lines = [json.dumps({"text": text[:3000], "lang": language}) for language, text in texts.items()]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines) + "\n")
    seqmill("tokenizer", "train", "raw.jsonl", "--vocab-size", 400, "--out", "bpe", "--quiet", cwd=tmp_path)
    seqmill("tokenizer", "train", "raw.jsonl", "--kind", "byte", "--out", "bytes", "--quiet", cwd=tmp_path)
    command = ["tokenizer", "report", "raw.jsonl", "--tokenizer", "bpe", "--tokenizer", "bytes", "--out", "report"]
    command += ["--group-by", "lang", "--parallel", "--reference", "glg", "--quiet", "--workers", "1"]
    shown = seqmill(*command, cwd=tmp_path).stdout
    assert "encode cold MB/s" in shown
    assert "written to report: report.json, report.html" in shown
    assert (tmp_path / "report" / "report.html").read_text(encoding="utf-8").count("<svg") == 4
    found = json.loads(seqmill(*command, "--json", "--no-timings", cwd=tmp_path).stdout)
    num_bytes = {language: len(text[:3000].encode()) for language, text in texts.items()}
    assert (found["documents"], found["bytes"], found["quarantined"]) == (2, sum(num_bytes.values()), 0)
    groups = found["figures"][1]["groups"]
    assert {language: figures["tokens"] for language, figures in groups.items()} == num_bytes
    assert groups["kor"]["parity"] == round(num_bytes["kor"] / num_bytes["glg"], 6)
    assert "timings" not in json.loads((tmp_path / "report" / "report.json").read_text())
    assert "reference = None: parity needs both" in seqmill(*command[:9], "--parallel", cwd=tmp_path, code=2).stderr
