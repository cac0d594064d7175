"""What every driver does around its peer: read documents, do one task, say how long it took and what it found.

    python run_PEER.py describe OUT                       version, names of its recipes
    python run_PEER.py signatures OUT DOCUMENTS           seconds from strings to signatures, per variant
    python run_PEER.py dedup OUT DOCUMENTS RECIPE [warm]  seconds from the JSON lines to what is kept, and the clusters;
                                                          "warm" counts the second time in the process

DOCUMENTS is one file of JSON lines with id and text. OUT is a folder; the answer is OUT/result.json. Drivers run in the
peer's own environment, so this file uses the standard library only.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

NGRAM, BANDS, ROWS, THRESHOLD, SEED = 5, 14, 8, 0.8, 1
PERMUTATIONS = BANDS * ROWS
SAME_BANDS = f"{BANDS}x{ROWS}"  # the recipe that every peer has: the bands of seqmill's preset `fineweb`
BUDGETS = (256, 1024)  # MiB of memory, for recipes of seqmill alone
USUAL = "usual"  # the peer's own defaults, or those of its manual, at a threshold of 0.8

REPEATS = 3
WORD = re.compile(r"\w+")

Clusters = Iterable[tuple[str, str]]  # (document id, name of its cluster); documents alone in theirs may be left out
Signatures = Callable[[list[str]], object]
Dedup = Callable[[Path, Path], Callable[[], Clusters]]  # (documents, scratch) -> what tells the clusters, untimed


def main(package: str, signatures: dict[str, Signatures], recipes: dict[str, Dedup]) -> None:
    """Do the task that the command line names with one of the functions given."""
    task, out, *rest = sys.argv[1:]
    answer: dict[str, object] = {"version": version(package)}
    if task == "describe":
        answer["recipes"] = list(recipes)
    elif task == "signatures":
        texts = [text for _, text in read_documents(Path(rest[0]))]
        answer["seconds"] = {name: _best_seconds(function, texts) for name, function in signatures.items()}
    else:
        documents, recipe, *warm = rest
        if warm:
            recipes[recipe](Path(documents), Path(out) / "first")
        began = time.perf_counter()
        found = recipes[recipe](Path(documents), Path(out))
        answer["seconds"] = time.perf_counter() - began
        with (Path(out) / "clusters.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in found())
    (Path(out) / "result.json").write_text(json.dumps(answer))


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
