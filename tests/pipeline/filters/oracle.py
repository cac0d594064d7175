"""Slow, obvious versions of every rule, in plain Python."""

import unicodedata
from collections import Counter

from seqmill.pipeline.dedup.characters import UNSPACED_BLOCKS


def is_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def stands_alone(character: str) -> bool:
    return is_word(character) and any(first <= ord(character) <= last for first, last in UNSPACED_BLOCKS)


def words(text: str) -> list[str]:
    spaced = "".join(f" {c} " if stands_alone(c) else c if is_word(c) else " " for c in text)
    return [word for word in spaced.split(" ") if word]


def symbols(text: str) -> int:
    is_symbol = [not is_word(c) and not c.isspace() for c in text]
    return sum(here and (k == 0 or text[k - 1] != text[k]) for k, here in enumerate(is_symbol))


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def has_letter(text: str) -> bool:
    return any(c.isalpha() for c in text)


def quality(text: str, stop_words: tuple[str, ...]) -> dict[str, int]:
    found, pieces, rows = words(text), text.split(), lines(text)
    return {
        "CHARACTERS": len(text),
        "WORDS": len(found),
        "WORD_CHARACTERS": sum(map(len, found)),
        "ALPHABETIC_WORDS": sum(map(has_letter, found)),
        "PIECES": len(pieces),
        "ALPHABETIC_PIECES": sum(map(has_letter, pieces)),
        "SYMBOLS": symbols(text),
        "HASHES": text.count("#"),
        "ELLIPSES": text.count("...") + text.count("…"),
        "LINES": len(rows),
        "BULLET_LINES": sum(row.startswith(("•", "-")) for row in rows),
        "ELLIPSIS_LINES": sum(row.endswith(("...", "…")) for row in rows),
        "STOP_WORDS": sum(any(form in found for form in (s, s.title(), s.upper())) for s in stop_words),
    }


def repeated(items: list[str]) -> tuple[int, int]:
    again = [item for k, item in enumerate(items) if item in items[:k]]
    return len(again), sum(map(len, again))


def paragraphs(text: str) -> list[str]:
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            blocks[-1].append(line.strip())
        else:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def line_measures(text: str, marks: str, short_line: int) -> list[int]:
    rows, blocks = lines(text), paragraphs(text)
    return [
        len(rows),
        *repeated(rows),
        len(blocks),
        *repeated(blocks),
        sum(row[-1] in marks for row in rows),
        sum(len(row) <= short_line for row in rows),
        text.count("\n"),
    ]


def top_ngram(found: list[str], n: int) -> int:
    grams = [tuple(found[k : k + n]) for k in range(len(found) - n + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]  # of equal counts the first met
    return count * len(" ".join(gram)) if count > 1 else 0


def duplicate_ngrams(found: list[str], n: int) -> int:
    met: set[tuple[str, ...]] = set()
    characters, at = 0, 0
    while at + n <= len(found):
        gram = tuple(found[at : at + n])
        if gram in met:
            characters += len("".join(gram))
            at += n
        else:
            met.add(gram)
            at += 1
    return characters


def ngrams(text: str) -> list[int]:
    found = words(text)
    return [top_ngram(found, n) for n in (2, 3, 4)] + [duplicate_ngrams(found, n) for n in range(5, 11)]


def sentences(line: str) -> int:
    count, k = 1, 0
    while k < len(line):
        if line[k] in ".!?":
            end = k + 1
            while end < len(line) and line[end] in ".!?\"')]":
                end += 1
            after = end
            while after < len(line) and line[after] in " \t":
                after += 1
            if end < after < len(line) and not "a" <= line[after] <= "z":
                count += 1
            k = end
        else:
            k += 1
    return count


POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip


def c4(text: str) -> tuple[str, str, int, dict[str, int]]:
    """The lines kept, the outcome, their sentences, and the bytes dropped by reason; citations are cut before."""
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    for raw in text.split("\n"):
        line = raw.strip()
        small = "".join(c.lower() if c.isascii() else c for c in line)
        if not line:
            continue
        if any(len(word) > 1000 for word in line.split()):
            reason = "long word"
        elif not line.endswith((".", "?", "!", '"', "'")) or line.endswith("..."):
            reason = "no terminal mark"
        elif len(line.split()) < 3:
            reason = "few words"
        elif "lorem ipsum" in small:
            return "\n".join(kept), "lorem ipsum", sum(map(sentences, kept)), dict(dropped)
        elif "javascript" in small:
            reason = "javascript"
        elif "{" in line:
            return "\n".join(kept), "curly bracket", sum(map(sentences, kept)), dict(dropped)
        elif any(policy in small for policy in POLICIES):
            reason = "policy"
        else:
            kept.append(line)
            continue
        dropped[reason] += len(raw.encode())
    return "\n".join(kept), "kept", sum(map(sentences, kept)), dict(dropped)
