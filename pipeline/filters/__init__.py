"""Quality filters, language identification and masking: documents to fewer and cleaner documents."""

from seqmill.pipeline.filters.config import PRESETS, FilterConfig, with_preset
from seqmill.pipeline.filters.stage import filter_documents

__all__ = ["PRESETS", "FilterConfig", "filter_documents", "with_preset"]
