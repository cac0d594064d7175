"""What the dedup stage can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from seqmill.errors import UserError
from seqmill.pipeline.dedup.characters import Normaliser
from seqmill.pipeline.dedup.minhash import candidate_probability

SCOPES = ("none", "local", "global", "groups")


@dataclass(frozen=True)
class Preset:
    """A recipe: how candidates for near duplicates are found."""

    ngram: int  # units per shingle
    bands: int
    rows: int  # signature rows per band
    normaliser: Normaliser = field(default_factory=Normaliser)  # what of a text counts

    @property
    def spaced(self) -> bool:
        """Whether units are characters, white space between them included."""
        return self.normaliser.unit == "character"

    @property
    def verifier(self) -> Normaliser:
        """What counts when a removal is verified: as for candidates, but numbers are told apart, so that pages that
        differ in their figures alone are kept."""
        return replace(self.normaliser, fold_numbers=False)

    def recall(self, similarity: float) -> float:
        """The expected share of pairs of this Jaccard similarity that become candidates."""
        return candidate_probability(similarity, self.bands, self.rows)


PRESETS = {
    # FineWeb, datatrove's MinHash with its text normalisation; words by Unicode category instead of spaCy
    "fineweb": Preset(5, 14, 8, Normaliser(fold_accents=True, fold_numbers=True, fold_underscore=True)),
    # SlimPajama (Cerebras modelzoo): lower case, no ASCII punctuation, 13-grams of characters
    "slimpajama": Preset(13, 9, 13, Normaliser(unit="character")),
    # Lee et al. 2022, appendix A: 5-grams of what stands between white space, 9,000 permutations
    "lee": Preset(5, 450, 20, Normaliser(unit="run", fold_case=False)),
    # DataComp-LM 2024: 5-grams of Unicode words, 1,395 permutations
    "dclm": Preset(5, 93, 15, Normaliser(fold_case=False)),
    # Data-Juicer's Ray benchmark: lower case, 5-grams of what stands between white space
    "data-juicer": Preset(5, 32, 8, Normaliser(unit="run")),
}


@dataclass(frozen=True)
class DedupConfig:
    """`[dedup]`: exact duplicates by their text, near duplicates by verified MinHash."""

    exact: bool = True  # remove documents whose NFC text is equal up to white space
    near: bool = True  # remove documents that are similar to a kept one, or to one held out
    preset: str = "fineweb"
    ngram: int | None = None  # units per shingle, instead of the preset's
    bands: int | None = None  # instead of the preset's
    rows: int | None = None  # signature rows per band, instead of the preset's
    threshold: float = 0.8  # smallest exact Jaccard similarity of shingles that removes a document
    containment: float | None = None  # smallest share of a document's shingles in a kept one that removes it too
    scope: str = "global"  # documents that are compared: "none", "local" (of one source), "global", "groups"
    groups: Mapping[str, list[str]] = field(default_factory=dict)  # name -> sources compared with each other
    source_priority: tuple[str, ...] = ()  # sources whose documents survive against others, best first
    holdout: tuple[str, ...] = ()  # evaluation sets: raw files or a documents folder; what matches them is removed
    holdout_ngram: int = 13  # words of the runs that tell a holdout document inside a longer one
    holdout_share: float = 0.8  # smallest share of a holdout document's runs, found in one document, that removes it
    index: str | None = None  # folder that remembers what was kept; new documents are compared with it and added
    alarm_share: float = 0.5  # warn of a source that loses more than this share of its documents
    memory_mb: int = 1024  # MiB that a unit plans with, beside 350 of Python itself; no output byte depends on it
    seed: int = 1  # of the hash family

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"dedup.preset = {self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.scope not in SCOPES:
            raise UserError(f"dedup.scope = {self.scope!r}: choose one of {', '.join(SCOPES)}")
        if self.seed < 0:
            raise UserError(f"dedup.seed = {self.seed}: 0 or more is needed")
        for name in ("threshold", "containment", "holdout_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"dedup.{name} = {value}: a share of shingles lies above 0 and at most at 1")
        if self.index is not None and not self.compares:
            raise UserError('dedup.index needs dedup.exact or dedup.near, and another dedup.scope than "none"')
        if self.index is not None and (not self.index or "://" in self.index):
            raise UserError(f"dedup.index = {self.index!r}: a folder of a local or shared file system is needed")
        if isinstance(self.holdout, str) or not all(self.holdout):
            raise UserError(f"dedup.holdout = {self.holdout!r}: a list of paths is needed")
        if self.memory_mb < 1:
            raise UserError(f"dedup.memory_mb = {self.memory_mb}: at least 1 is needed")
        if not 0 <= self.alarm_share <= 1:
            raise UserError(f"dedup.alarm_share = {self.alarm_share}: a share lies between 0 and 1")
        for name in ("ngram", "bands", "rows", "holdout_ngram"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1000:
                raise UserError(f"dedup.{name} = {value}: between 1 and 1000 is needed")
        self._check_groups()

    def _check_groups(self) -> None:
        if bool(self.groups) != (self.scope == "groups"):
            raise UserError('dedup.groups goes with dedup.scope = "groups", and that scope needs at least one group')
        seen: dict[str, str] = {}
        for group, sources in self.groups.items():
            if not isinstance(sources, list | tuple) or not all(isinstance(source, str) for source in sources):
                raise UserError(f"dedup.groups.{group} = {sources!r}: a list of source names is needed")
            for source in sources:
                if source in seen:
                    raise UserError(f"dedup.groups: source {source!r} is in {seen[source]!r} and in {group!r}")
                seen[source] = group

    @property
    def compares(self) -> bool:
        """Whether documents are compared with each other."""
        return self.scope != "none" and (self.exact or self.near)

    @property
    def recipe(self) -> Preset:
        """The preset with what replaces parts of it."""
        given = {name: getattr(self, name) for name in ("ngram", "bands", "rows")}
        return replace(PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None})
