"""Decoders in GGUF files of llama.cpp, read once: Llama and Qwen3, with any quantisation, as a folder of the HF hub.

    import_gguf("model.gguf", "model")
    model = load("model")

Weights become float32 numbers: what the file says, not what the model had before it was quantised. llama.cpp turns
neighbouring numbers of a head by a position, so in its Llama files the rows of q and k lie in another order.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.config import ModelConfig, RopeScaling
from seqmill.models.huggingface import export_huggingface, model_of
from seqmill.models.rotary import rotary_frequencies
from seqmill.models.transformer import Model
from seqmill.storage import write_json
from seqmill.tokenizers_ext.artifact import save_subword
from seqmill.tokenizers_ext.gguf_vocabulary import TOKENS, convert_vocabulary

try:
    import gguf
except ImportError:
    gguf = None

FAMILIES = ("llama", "qwen3")
TOKENIZER_CONFIG = "tokenizer_config.json"  # what transformers reads beside tokenizer.json
ROPE_FACTORS = "rope_freqs.weight"  # by what each rotary frequency is divided
LLAMA3_BOUNDS = (1.0, 4.0, 8192)  # low and high frequency factor, original positions: Meta's in all models

Metadata = Mapping[str, Any]

_SIZES = {  # theirs, behind the name of the family -> ours
    "embedding_length": "dim",
    "block_count": "layers",
    "attention.head_count": "heads",
    "feed_forward_length": "ffn_dim",
}
_READ = {  # besides these
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
}
_HARMLESS = {  # say nothing about what the model computes
    "context_length",
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}


def import_gguf(path: Path | str, out: Path | str) -> ModelConfig:
    """Write the model and tokenizer of a GGUF file as `load`, `generate` and transformers read them.

        out/config.json, out/model.safetensors            the model, float32
        out/tokenizer.json, out/seqmill.json              the tokenizer, and which ids begin and end a document
        out/tokenizer_config.json                         the same for transformers, and the template of chats

    Raises:
        UserError: the file is damaged, of another family, or has a setting, tensor or tokenizer not known here; or
            the package gguf is not on this machine. Nothing is written.
    """
    path, out = Path(path), Path(out)
    with _opened(path) as reader:
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tokenizer_json, special_ids = convert_vocabulary(metadata)
        model = _read_model(reader, metadata)
    if len(metadata[TOKENS]) > model.config.vocab_size:
        raise UserError(
            f"{path}: {len(metadata[TOKENS])} tokens, but only {model.config.vocab_size} have an embedding; the file "
            "is damaged, download it again"
        )
    export_huggingface(model, out)
    save_subword(out, tokenizer_json, {"file": path.name}, special_ids)
    names = {f"{role}_token": metadata[TOKENS][id_] for role, id_ in special_ids.items()}
    if "tokenizer.chat_template" in metadata:
        names["chat_template"] = metadata["tokenizer.chat_template"]
    write_json(out / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return model.config


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A GGUFReader of a whole file; errors name the file."""
    if gguf is None:
        raise UserError(f"{path}: reading it needs the package gguf: pip install 'seqmill[gguf]'")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:  # it takes the file to be whole
        raise UserError(f"{path} is no whole GGUF file ({error}); download it again") from error
    try:
        yield reader
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_model(reader: Any, metadata: Metadata) -> Model:
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise UserError(f"general.architecture {family!r} cannot be read; {' and '.join(FAMILIES)} can")
    if metadata.get("split.count", 1) > 1:
        raise UserError(
            f"it is one of {metadata['split.count']} parts of a model; join them with `llama-gguf-split --merge` first"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for needed in ("token_embd.weight", "output_norm.weight"):
        if needed not in tensors:
            raise UserError(f"tensor {needed} is missing; download it again")
    rows = tensors["token_embd.weight"].shape[-1]  # GGUF names the innermost axis first
    config = config_from_metadata(metadata, int(rows), tied_head="output.weight" not in tensors)
    if factors := tensors.pop(ROPE_FACTORS, None):
        config = _with_rope_factors(config, _weights(factors))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.layers)
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads} if family == "llama" else {}
    read = ((name, _in_order(_weights(tensor), heads.get(name.split(".")[-2]))) for name, tensor in tensors.items())
    return model_of(config, read, "its tensors", partial(names.get_name, try_suffixes=(".weight",)))


def config_from_metadata(metadata: Metadata, vocab_size: int, tied_head: bool) -> ModelConfig:
    """The shape that the metadata of a GGUF file describe.

    Raises:
        UserError: a size is missing, or a setting is there that a plain decoder does not have.
    """
    family = metadata["general.architecture"]
    given = {key.removeprefix(f"{family}."): value for key, value in metadata.items() if key.startswith(f"{family}.")}
    for name, value in given.items():
        if name not in _SIZES.keys() | _READ | _HARMLESS and value:
            raise UserError(f"{family}.{name} = {value!r} is not known here; only a plain {family} can be read")
    for name in (*_SIZES, "attention.layer_norm_rms_epsilon"):
        if not isinstance(given.get(name), int | float):
            raise UserError(
                f"{family}.{name} = {given.get(name)!r}: one number is needed; only a plain {family} can be read"
            )
    head_dim = given.get("attention.key_length") or given["embedding_length"] // given["attention.head_count"]
    for name in ("attention.value_length", "rope.dimension_count"):
        if given.get(name, head_dim) != head_dim:
            raise UserError(f"{family}.{name} = {given[name]} is not the {head_dim} of the other parts of a head")
    return ModelConfig(
        **{ours: given[theirs] for theirs, ours in _SIZES.items()},
        vocab_size=vocab_size,
        kv_heads=given.get("attention.head_count_kv") or given["attention.head_count"],
        head_dim=head_dim,
        rope_theta=given.get("rope.freq_base") or 10_000.0,
        norm_eps=float(f"{given['attention.layer_norm_rms_epsilon']:.6g}"),  # stored as float32: 1e-5 is 9.9999997e-6
        tied_head=tied_head,
        qk_norm=family == "qwen3",
        rope_scaling=_scaling_of(given, family),
    )


def _scaling_of(given: Metadata, family: str) -> RopeScaling | None:
    kind = given.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UserError(f"{family}.rope.scaling.type = {kind!r} is not known here; none and linear are")
    return RopeScaling("linear", given["rope.scaling.factor"]) if kind == "linear" else None


def _with_rope_factors(config: ModelConfig, factors: Tensor) -> ModelConfig:
    """The config whose rotary frequencies are those of the file: it holds what came out of llama3 scaling."""
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    scaling = RopeScaling("llama3", float(factors.max()), *LLAMA3_BOUNDS)
    scaled = rotary_frequencies(config.head_dim, config.rope_theta, scaling)
    if factors.shape != plain.shape or not torch.allclose(plain / factors, scaled, rtol=1e-4):
        raise UserError(f"{ROPE_FACTORS} are not those of llama3 with its usual bounds, the only ones known here")
    return replace(config, rope_scaling=scaling)


def _weights(tensor: Any) -> Tensor:
    """The numbers of a tensor, float32, the outermost axis first."""
    try:
        return torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError as error:
        raise UserError(f"tensor {tensor.name} is of type {tensor.tensor_type.name}, which gguf cannot read") from error


def _in_order(weight: Tensor, heads: int | None) -> Tensor:
    """Undo llama.cpp's order of rows: 0, E/2, 1, E/2 + 1, ... of each of so many heads of E rows."""
    return weight if heads is None else weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
