"""A trained byte model as integers: the file that `seqmill.compress` reads and runs without torch."""

from pathlib import Path

from seqmill.compress.integer_weights import DecoderShape, IntegerWeights, quantise_decoder, write_weights
from seqmill.errors import UserError
from seqmill.models.checkpoint import load
from seqmill.models.transformer import Model

START_ID = 256  # the end-of-document id of the byte tokenizer: it stands before every excerpt


def export_integers(checkpoint: Path | str, out: Path | str, positions: int = 64) -> IntegerWeights:
    """Write the integer form of a checkpoint as one file.

    Args:
        checkpoint: a training folder, or one of its checkpoints, of a model of bytes that was trained on excerpts.
        positions: bytes of the excerpts; the model then sees the start and positions - 1 bytes.

    Raises:
        UserError: there is no checkpoint, or its model has no integer form.
    """
    weights = integer_weights(load(checkpoint), positions)
    write_weights(Path(out), weights)
    return weights


def integer_weights(model: Model, positions: int = 64) -> IntegerWeights:
    """The integer form of a model; see `export_integers`."""
    config = model.config
    if config.qk_norm or config.rope_scaling or config.variants or config.vocab_size <= START_ID:
        raise UserError(
            f"a model of {config.vocab_size} ids with qk_norm = {config.qk_norm}, rope_scaling = {config.rope_scaling} "
            f"and variants {config.variants} has no integer form: ids 0 to 255 must be the bytes, {START_ID} the "
            "start, and the others off; train a preset such as bytes-0.8m on excerpts"
        )
    shape = DecoderShape(
        dim=config.dim,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        positions=positions,
    )
    floats = {name: parameter.detach().float().cpu().numpy() for name, parameter in model.named_parameters()}
    return quantise_decoder(floats, shape, START_ID, config.rope_theta, config.norm_eps)
