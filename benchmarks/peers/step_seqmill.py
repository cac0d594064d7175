"""This project's decoder, driven as its peers are, with every way to keep less for the gradients."""

from typing import Any

import torch
from steps import Loss, Shape, Variant, main

from seqmill.models import Model, ModelConfig
from seqmill.models.attention import HALF_TYPES, Segments, choose_backend
from seqmill.models.loss import cross_entropy_sum
from seqmill.models.memory import MemorySettings

PIECE = {"cpu": 512, "cuda": 4096}  # tokens of a tile of SwiGLU and of a streamed chunk
CHUNKED_LOSS = "chunked loss"

TILED: dict[str, Any] = {"mlp_tile": PIECE}
LAYER: dict[str, Any] = {"checkpoint": "layer"}
KEEP: dict[str, Any] = {"checkpoint": "keep-attention"}
STREAM: dict[str, Any] = {"stream_chunk": PIECE}
OFFLOAD: dict[str, Any] = {"offload": True}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    CHUNKED_LOSS: {},
    "tiled mlp": TILED,
    "keep attention": KEEP,
    "keep attention + tiled mlp": KEEP | TILED,
    "layer": LAYER,
    "layer + tiled mlp": LAYER | TILED,
    "streamed": STREAM,
    "keep attention + offload": KEEP | OFFLOAD,
    "layer + offload": LAYER | OFFLOAD,
    "layer + tiled mlp + offload": LAYER | TILED | OFFLOAD,
    "streamed + offload": STREAM | OFFLOAD,
}


def by(name: str) -> Variant:
    """One of the ways; all but "plain" chunk the loss, so that the logits of a row are never held."""

    def make(shape: Shape, device: torch.device) -> Loss:
        model = Model(ModelConfig(**shape)).to(device)
        backend = choose_backend("auto", device, HALF_TYPES[0] if device.type == "cuda" else torch.float32)
        settings = {key: value[device.type] if value is PIECE else value for key, value in WAYS[name].items()}
        memory = MemorySettings(**settings)

        def loss_of(ids: torch.Tensor) -> torch.Tensor:
            segments = Segments.of([len(ids)], device)
            hidden = model(ids, segments.positions().to(device), segments, backend, memory)[:-1]
            hidden = hidden.to(torch.get_autocast_dtype("cuda") if device.type == "cuda" else hidden.dtype)
            at_once = len(ids) if name == "plain" else None
            summed = cross_entropy_sum(hidden, model.head_weight, ids[1:], shape["vocab_size"], at_once)
            return summed / (len(ids) - 1)

        return loss_of

    return make


if __name__ == "__main__":
    main("seqmill", {name: by(name) for name in WAYS})
