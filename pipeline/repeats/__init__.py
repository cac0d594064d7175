"""Repeated data: how much of it a corpus has, and corpora that repeat a known part of themselves."""

from seqmill.pipeline.repeats.config import SampleConfig
from seqmill.pipeline.repeats.histogram import histogram
from seqmill.pipeline.repeats.sample import sample

__all__ = ["SampleConfig", "histogram", "sample"]
