"""What every driver does around its peer: one task, and an answer; and what those of deduplication do besides.

    python run_PEER.py describe OUT                       version, names of its recipes
    python run_PEER.py signatures OUT DOCUMENTS           seconds from strings to signatures, per variant
    python run_PEER.py dedup OUT DOCUMENTS RECIPE [warm]  seconds from the JSON lines to what is kept, and the clusters;
                                                          "warm" counts the second time in the process

DOCUMENTS is one file of JSON lines with id and text. OUT is a folder; the answer is OUT/result.json, and always has the
version of the peer. Drivers run in the peer's own environment, so this file uses the standard library only.
"""

import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

NGRAM, BANDS, ROWS, THRESHOLD, SEED = 5, 14, 8, 0.8, 1
PERMUTATIONS = BANDS * ROWS
SAME_BANDS = f"{BANDS}x{ROWS}"  # the recipe that every peer has: the bands of seqmill's preset `fineweb`
BUDGETS = (256, 1024)  # MiB of memory, for recipes of seqmill alone
USUAL = "usual"  # the peer's own defaults, or those of its manual, at a threshold of 0.8

REPEATS = 3
WORD = re.compile(r"\w+")

Task = Callable[..., Mapping[str, object]]  # (OUT, the further arguments) -> what the answer says
Clusters = Iterable[tuple[str, str]]  # (document id, name of its cluster); documents alone in theirs may be left out
Signatures = Callable[[list[str]], object]
Dedup = Callable[[Path, Path], Callable[[], Clusters]]  # (documents, scratch) -> what tells the clusters, untimed


def answer(package: str, tasks: Mapping[str, Task], **described: Sequence[str]) -> None:
    """Do the task that the command line names, and write what it found and the version of the peer.

    Args:
        package: the distribution whose version it is; "python" is the language itself.
        tasks: by name, all but `describe`.
        described: what `describe` finds.
    """
    name, out, *arguments = sys.argv[1:]
    told = {"version": platform.python_version() if package == "python" else version(package)}
    found = described if name == "describe" else tasks[name](Path(out), *arguments)
    (Path(out) / "result.json").write_text(json.dumps({**told, **found}))


def main(package: str, signatures: dict[str, Signatures], recipes: dict[str, Dedup]) -> None:
    """Do the task that the command line names with one of the functions given."""

    def sign(_out: Path, documents: str) -> dict[str, object]:
        texts = [text for _, text in read_documents(Path(documents))]
        return {"seconds": {name: _best_seconds(function, texts) for name, function in signatures.items()}}

    def dedup(out: Path, documents: str, recipe: str, *warm: str) -> dict[str, object]:
        if warm:
            recipes[recipe](Path(documents), out / "first")
        began = time.perf_counter()
        found = recipes[recipe](Path(documents), out)
        seconds = time.perf_counter() - began
        with (out / "clusters.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in found())
        return {"seconds": seconds}

    answer(package, {"signatures": sign, "dedup": dedup}, recipes=list(recipes))


def read_documents(path: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of every line."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["id"], record["text"]


def shingles(text: str) -> list[str]:
    """The distinct 5-grams of words of a text; a shorter text is one shingle. For peers that take shingles."""
    words = WORD.findall(text.lower())
    return list({" ".join(words[k : k + NGRAM]) for k in range(max(1, len(words) - NGRAM + 1))})


def _best_seconds(function: Signatures, texts: list[str]) -> float:
    function(texts[: len(texts) // 10])  # warm up
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function(texts)
        times.append(time.perf_counter() - began)
    return min(times)
