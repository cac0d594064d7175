"""K-mers in plain Python: slices of k letters, looked up in a dictionary that fills as they come."""

import json
from pathlib import Path

from tokens import Codec, main


class Kmers(dict[str, int]):
    """K-mer -> id; one that is not there yet is read as a number of base 4."""

    digits = str.maketrans("ACGT", "0123")

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def __missing__(self, kmer: str) -> int:
        self[kmer] = self.first + int(kmer.translate(self.digits), 4)
        return self[kmer]


def dictionary(tokenizer: Path) -> Codec:
    described = json.loads((tokenizer / "seqmill.json").read_text())
    k = described["settings"]["k"]
    table = Kmers(described["vocab_size"] - 4**k)
    return Codec(
        lambda texts: [[table[text[at : at + k]] for at in range(0, len(text), k)] for text in texts],
        lambda encoded: encoded,
    )


if __name__ == "__main__":
    main("python", {"dictionary": dictionary})
