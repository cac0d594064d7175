"""Raw text to packed shards, stage by stage, and the whole run.

    sources -> ingest -> filters -> dedup -> substrings -> traps -> mixing -> train_tokenizer -> tokenize -> pack
            -> model_steps -> report

A stage cuts its work into units (`execution`), which an executor runs here or on a Ray cluster (`executors`).
"""

from seqmill.pipeline.config import RunConfig, load_config
from seqmill.pipeline.run import run

__all__ = ["RunConfig", "load_config", "run"]
