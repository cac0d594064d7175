"""Mixing: how often each source is seen, in which order, and what is held out."""

from seqmill.pipeline.mixing.config import MixConfig, SplitConfig
from seqmill.pipeline.mixing.split import split
from seqmill.pipeline.mixing.stage import mix

__all__ = ["MixConfig", "SplitConfig", "mix", "split"]
