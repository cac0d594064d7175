"""What the dedup stage can be told."""

from dataclasses import dataclass

from seqmill.errors import UserError
from seqmill.pipeline.dedup.minhash import candidate_probability

SCOPES = ("global", "local")


@dataclass(frozen=True)
class Preset:
    """A published recipe: how candidates for near duplicates are found."""

    ngram: int  # words per shingle
    bands: int
    rows: int  # signature rows per band

    def recall(self, similarity: float) -> float:
        """The expected share of pairs of this Jaccard similarity that become candidates."""
        return candidate_probability(similarity, self.bands, self.rows)


PRESETS = {"fineweb": Preset(ngram=5, bands=14, rows=8)}


@dataclass(frozen=True)
class DedupConfig:
    """`[dedup]`: exact duplicates by their text, near duplicates by verified MinHash."""

    exact: bool = True  # remove documents whose NFC text is equal up to white space
    near: bool = True  # remove documents that are similar to a kept one
    preset: str = "fineweb"
    threshold: float = 0.8  # smallest exact Jaccard similarity of word shingles that removes a document
    scope: str = "global"  # "global": across sources; "local": inside each source
    source_priority: tuple[str, ...] = ()  # sources whose documents survive against others, best first
    seed: int = 1  # of the hash family

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"dedup.preset = {self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.scope not in SCOPES:
            raise UserError(f"dedup.scope = {self.scope!r}: choose one of {', '.join(SCOPES)}")
        if self.seed < 0:
            raise UserError(f"dedup.seed = {self.seed}: 0 or more is needed")
        if not 0 < self.threshold <= 1:
            raise UserError(f"dedup.threshold = {self.threshold}: a Jaccard similarity lies above 0 and at most at 1")
