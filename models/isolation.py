"""Whether packed documents keep apart: change one, and look whether any other moves.

Leaks between documents are the commonest fault of packing, and a falling loss hides them: positions that restart do not
isolate, and a mask that a library overlooks leaves plain causal attention over the whole row. This check needs to know
nothing of what runs underneath, so it can be made with any model, backend and device before a long run.

Tensor names end in their axes: T tokens, D model width, N documents.
"""
# ruff: noqa: N803, N806, N815 (the axes are capital letters)

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention import HALF_TYPES, Segments, choose_backend, layer_patterns
from seqmill.models.transformer import Model

Hidden = Callable[[Tensor, Tensor, Segments], Tensor]
"""(input_ids_T, position_ids_T, segments) -> hidden_TD."""


@dataclass(frozen=True)
class Isolation:
    """How far the hidden vectors of each document moved as each of them was changed."""

    moved_NN: Tensor  # float32: of the changed document's row, the largest difference in each document; nan if one is

    @property
    def leaks(self) -> tuple[tuple[int, int], ...]:
        """(changed document, other document that moved) of each leak; none where documents keep apart."""
        moved = self.moved_NN.clone().fill_diagonal_(0.0) != 0  # nan is not 0 either
        return tuple((changed, other) for changed, other in moved.nonzero().tolist())

    @property
    def holds(self) -> bool:
        """Whether no document moved another by a single bit, while all moved themselves."""
        return not self.leaks and bool((self.moved_NN.diagonal() > 0).all())


@torch.no_grad()
def check_isolation(
    model: Model,
    segments: Segments | Sequence[int],
    *,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    hidden: Hidden | None = None,
    seed: int = 0,
) -> Isolation:
    """Pack documents of random ids, change every token of one of them after the other, and see which others move.

        assert check_isolation(load("run"), [300, 1, 128, 595]).holds

    On one device, with one backend and the same lengths, a document's hidden vectors come from the same operations on
    the same numbers, so they may not move at all. One forward pass for each document and one more.

    Args:
        segments: of the documents, or their lengths in tokens. Take them as they come in training: kernels choose by
            lengths.
        backend: a name in `attention.BACKENDS`, or auto.
        dtype: of matrix products, as in training; None: that of the weights.
        hidden: what to check in place of the model's own forward pass, such as its compiled form.
        seed: of the ids.

    Raises:
        UserError: there are fewer than two documents, or the backend cannot run here.
    """
    device, vocab_size = model.device, model.config.vocab_size
    if not isinstance(segments, Segments):
        segments = Segments.of(segments, device)
    if len(segments.lengths) < 2 or vocab_size < 2:
        raise UserError(
            f"isolation cannot be checked with {len(segments.lengths)} documents and {vocab_size} ids: give two "
            "documents or more, and a model of two ids or more"
        )
    dtype = dtype or model.head_weight.dtype
    name = choose_backend(backend, device, dtype, layer_patterns(model.config))
    positions_T = segments.positions().to(device)
    is_mixed = dtype in HALF_TYPES and dtype != model.head_weight.dtype

    def run(ids_T: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype) if is_mixed else contextlib.nullcontext():
            ids_T = ids_T.to(device)
            hidden_TD = hidden(ids_T, positions_T, segments) if hidden else model(ids_T, positions_T, segments, name)
        return hidden_TD.float().cpu()

    generator = torch.Generator().manual_seed(seed)
    ids_T = torch.randint(vocab_size, positions_T.shape, generator=generator)
    document_T = torch.repeat_interleave(torch.tensor(segments.lengths))
    before_TD = run(ids_T)
    rows = []
    for changed in range(len(segments.lengths)):
        moved_TD = run(torch.where(document_T == changed, (ids_T + 1) % vocab_size, ids_T)) - before_TD
        rows.append(torch.stack([part.amax() for part in moved_TD.abs().split(segments.lengths)]))
    return Isolation(torch.stack(rows))
