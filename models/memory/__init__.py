"""What a layer keeps for its gradients: everything, or little enough for rows many times as long.

    settings          which of the ways below, in one frozen dataclass
    recompute         checkpointing of a layer: only its input is kept, or its input and what attention found
    tiling            functions of single tokens, a tile of tokens at a time
    streaming         StreamBP's layer: forward and backward a chunk of tokens at a time
    prefix_attention  the attention of such a chunk to all before it in its documents
    offload           what is kept goes to the host's memory
    layer             the settings as a function that runs one layer

All of them give the gradients of the plain layer; they differ in time and memory alone.
"""

from seqmill.models.memory.layer import LayerMemory, layer_memory
from seqmill.models.memory.settings import PLAIN, MemorySettings

__all__ = ["PLAIN", "LayerMemory", "MemorySettings", "layer_memory"]
