"""Text to ids and back: one Encoder protocol, Arrow in and out.

encoder = load("runs/demo/tokenizer")
ids = encoder.encode(pa.array(["two documents", "of text"]))   # list<uint16>
encoder.decode(ids)                                            # [b"two documents", b"of text"]
"""

from seqmill.tokenizers_ext.artifact import (
    copy_artifact,
    load,
    save_byte,
    save_equal_info,
    save_kmer,
    save_merged,
    save_subword,
)
from seqmill.tokenizers_ext.encoder import Encoder, append_id, id_type
from seqmill.tokenizers_ext.kmer import KmerConfig
from seqmill.tokenizers_ext.spans import Spans, spans
from seqmill.tokenizers_ext.training import BpeConfig, UnigramConfig, train_bpe

__all__ = [
    "BpeConfig",
    "Encoder",
    "KmerConfig",
    "Spans",
    "UnigramConfig",
    "append_id",
    "copy_artifact",
    "id_type",
    "load",
    "save_byte",
    "save_equal_info",
    "save_kmer",
    "save_merged",
    "save_subword",
    "spans",
    "train_bpe",
]
