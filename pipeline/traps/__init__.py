"""Copyright traps (Meeus et al. 2024, arXiv 2402.09363): made-up sequences that are hidden in documents many times, so
that whoever holds a model can test whether it was trained on those documents.

    make -> traps.parquet -> inject -> documents -> tokenize -> pack -> train -> score
                                                    (verify: is every copy still there?)

Half of the traps, the non-members, are never injected: a model that tells the halves apart has seen the members.
"""

from seqmill.pipeline.traps.config import InjectConfig, MakeConfig, ScoreConfig
from seqmill.pipeline.traps.inject import inject
from seqmill.pipeline.traps.make import make_traps
from seqmill.pipeline.traps.score import score_traps
from seqmill.pipeline.traps.verify import verify_traps

__all__ = ["InjectConfig", "MakeConfig", "ScoreConfig", "inject", "make_traps", "score_traps", "verify_traps"]
