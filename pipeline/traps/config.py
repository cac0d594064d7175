"""What is asked of each step of copyright traps, checked before any work."""

from dataclasses import dataclass

from seqmill.errors import UserError


@dataclass(frozen=True)
class MakeConfig:
    """How traps are written. The defaults are those of Meeus et al. 2024, section 4.

    Raises:
        UserError: a value is impossible.
    """

    lengths: tuple[int, ...] = (25, 50, 100)  # tokens of a trap
    count: int = 2000  # traps of each length, half of them members; an even number
    buckets: int = 10  # ranges of equal width between the limits of perplexity, filled evenly
    perplexity: tuple[float, float] = (1.0, 100.0)  # lower limit (included) and upper limit (left out)
    max_jaccard: float = 0.2  # largest similarity of the sets of token ids of any two traps
    rounds: int = 400  # batches of candidates tried for each length at most
    reference_bytes: int = 16_000_000  # text of the reference documents to count words in at most
    words: int = 8192  # most frequent words of the reference that traps are made of
    seed: int = 0  # of the texts, and of who is a member

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2 or len(set(self.lengths)) < len(self.lengths):
            raise UserError(
                f"--lengths {_listed(self.lengths)}: give different lengths of 2 tokens or more; one token foresees "
                "nothing"
            )
        if self.count < 2 or self.count % 2:
            raise UserError(f"--count {self.count}: an even number is needed, half of the traps are members")
        if self.buckets < 1:
            raise UserError(f"--buckets {self.buckets}: at least 1 is needed")
        low, high = self.perplexity
        if not 1 <= low < high < float("inf"):
            raise UserError(f"--perplexity {low:g}-{high:g}: needs 1 <= lower limit < upper limit")
        if not 0 <= self.max_jaccard <= 1:
            raise UserError(f"--max-jaccard {self.max_jaccard}: must lie between 0 and 1")
        for flag, value in (("--rounds", self.rounds), ("--reference-bytes", self.reference_bytes)):
            if value < 1:
                raise UserError(f"{flag} {value}: at least 1 is needed")
        if self.words < 2:
            raise UserError(f"--words {self.words}: a text is made of 2 different words or more")
        _check_seed(self.seed)


@dataclass(frozen=True)
class InjectConfig:
    """`[traps]`: how traps are hidden in documents.

    Raises:
        UserError: a value is impossible.
    """

    repetitions: tuple[int, ...] = (1, 10, 100)  # copies of a member; members are shared out evenly
    min_document_bytes: int = 20_000  # shorter documents get no trap; about 5,000 tokens, as in the paper
    seed: int = 0  # of documents, places and shares
    fuzzy: int = 0  # tokens that differ from the trap in every copy (Shilov et al. 2024, arXiv 2405.15523); 0: none

    def __post_init__(self) -> None:
        if not self.repetitions or min(self.repetitions) < 1 or len(set(self.repetitions)) < len(self.repetitions):
            raise UserError(f"traps.repetitions = {_listed(self.repetitions)}: give different numbers, each 1 or more")
        if self.min_document_bytes < 1:
            raise UserError(f"traps.min_document_bytes = {self.min_document_bytes}: at least 1 is needed")
        if self.fuzzy < 0:
            raise UserError(f"traps.fuzzy = {self.fuzzy}: 0 (exact copies) or more tokens to replace are needed")
        _check_seed(self.seed)


@dataclass(frozen=True)
class ScoreConfig:
    """How members are told from non-members.

    Raises:
        UserError: a value is impossible.
    """

    min_k: float = 0.2  # share of the least likely tokens that Min-K% averages (Shi et al. 2023, arXiv 2310.16789)
    bootstrap: int = 1000  # resamples behind a confidence interval
    seed: int = 0  # of the resamples

    def __post_init__(self) -> None:
        if not 0 < self.min_k <= 1:
            raise UserError(f"--min-k {self.min_k}: must be above 0 and at most 1")
        if self.bootstrap < 2:
            raise UserError(f"--bootstrap {self.bootstrap}: at least 2 resamples are needed for an interval")
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed}: 0 or more is needed")


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "(empty)"
