import json
from collections.abc import Callable
from pathlib import Path

from seqmill.manifest import open_manifest
from seqmill.packing import load_step_plan

Call = Callable[..., tuple[int, str, str]]


def test_rows_of_a_packed_folder_are_planned_and_what_it_gains_is_printed(seqmill_here: Call) -> None:
    texts = [json.dumps({"text": "word " * (1 + (k * k) % 97)}) for k in range(120)]
    Path("a.jsonl").write_text("\n".join(texts) + "\n")
    quiet = ("--workers", "1", "--quiet")
    assert seqmill_here("tokenizer", "train", "a.jsonl", "--kind", "byte", "--out", "bytes", *quiet)[0] == 0
    assert seqmill_here("tokenize", "a.jsonl", "--tokenizer", "bytes", "--out", "tokens", *quiet)[0] == 0
    assert seqmill_here("pack", "tokens", "--seq-len", "256", "--out", "packed", *quiet)[0] == 0
    manifest = open_manifest(Path("packed"))

    flags = ("packed", "--ranks", "4", "--rows", "2", "--out", "plan.arrow")
    code, out, err = seqmill_here("plan", *flags, "--model", "tiny", "--json")
    figures = json.loads(out)
    plan = load_step_plan(Path("plan.arrow"), dataset=manifest["fingerprint"])
    assert (code, err) == (0, "")
    assert figures["rows"] == len(plan.row_id) == manifest["totals"]["rows"]
    assert (figures["steps"], figures["plan_hash"], figures["unit"]) == (plan.steps, plan.hash, "FLOP")
    assert figures["speedup_over_round_robin"] >= 1

    lines = [{"n_tokens": 256, "sum_sq": 256 * k, "n_segments": k, "seconds": 1e-3 * k} for k in range(1, 9)]
    Path("timings.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = seqmill_here("plan", *flags, "--strategy", "lpt", "--timings", "timings.jsonl")
    assert code == 0
    assert "unit s" in out
    assert load_step_plan(Path("plan.arrow")).settings.strategy == "lpt"

    for wrong, message in (
        (("--strategy", "groups", "--timings", "timings.jsonl"), "give --exchange in seconds per token"),
        (("--exchange", "1"), "give it with --timings"),
        (("--model", "small"), "small"),
        (("--memory-tokens", "100"), "let ranks share rows"),
    ):
        code, out, err = seqmill_here("plan", *flags, *wrong)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
