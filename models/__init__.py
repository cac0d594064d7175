"""Models on packed shards: a decoder, its trainer, packed-prefill generation, scoring and embedding.

    result = train("packed", "run", TrainConfig(model="tiny", steps=200))
    model = load("run")
    generate(model, [[1, 2, 3], [4]], max_new_tokens=20)
    score(model, [[1, 2, 3]])
    embed(model, [[1, 2, 3]], "mean")

Ids go in and come out; the tokenizer that the packed folder carries is copied to `run/tokenizer`.
"""

from seqmill.models.checkpoint import load
from seqmill.models.config import PRESETS, ModelConfig
from seqmill.models.inference.beams import beam_search
from seqmill.models.inference.embedding import embed
from seqmill.models.inference.engine import Engine
from seqmill.models.inference.generate import generate
from seqmill.models.inference.hypotheses import Beam
from seqmill.models.inference.policy import CachePolicy
from seqmill.models.inference.requests import GeneratedSequence, Request
from seqmill.models.inference.retrieval_heads import retrieval_heads
from seqmill.models.inference.sampling import Sampling
from seqmill.models.inference.scoring import score
from seqmill.models.inference.settings import EngineSettings
from seqmill.models.isolation import Isolation, check_isolation
from seqmill.models.training.config import TrainConfig
from seqmill.models.training.runlog import StepRecord
from seqmill.models.training.trainer import TrainResult, train
from seqmill.models.transformer import Model
from seqmill.models.vocabulary import extend_vocabulary

__all__ = [
    "PRESETS",
    "Beam",
    "CachePolicy",
    "Engine",
    "EngineSettings",
    "GeneratedSequence",
    "Isolation",
    "Model",
    "ModelConfig",
    "Request",
    "Sampling",
    "StepRecord",
    "TrainConfig",
    "TrainResult",
    "beam_search",
    "check_isolation",
    "embed",
    "extend_vocabulary",
    "generate",
    "load",
    "retrieval_heads",
    "score",
    "train",
]
