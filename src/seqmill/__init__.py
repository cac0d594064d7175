"""seqmill: from raw text to gradients, in Arrow.

The five folders are the package: `seqmill.pipeline` (stages, executors, configuration), `seqmill.tokenizers_ext`
(text to ids), `seqmill.compress` (compression metrics), `seqmill.packing` (packed rows and the streaming dataset)
and `seqmill.models` (trainer and packed-prefill inference). Importing `seqmill` itself imports none of them.
"""

__version__ = "0.1.0"
