"""Decoders of the HF hub as ours, and ours as theirs: Llama and Qwen3, from and to safetensors on disk.

    HF folder: config.json, model.safetensors (or parts with an index), tokenizer.json where there is one

The weights are the same numbers: q, k and v lie in one matrix here, so do gate and up, and the vocabulary is padded.
A Qwen3 is a Llama with an RMSNorm over each query and key head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.config import ModelConfig, RopeScaling
from seqmill.models.transformer import Model
from seqmill.storage import atomic_path, read_json, write_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FAMILIES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}  # model_type -> architecture
_SIZES = {  # theirs -> ours
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_dim",
}
# Settings that change what the model computes and that it must not have; absent or one of these values is none.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "hidden_act": ("silu",),
}
_OF_LAYER = {  # weights of a layer that are the same matrix in both: theirs -> ours
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention_out",
    "mlp.down_proj": "down",
}
_OF_HEADS = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}  # where heads are normalised
_LLAMA3 = {  # fields of llama3 rope scaling: theirs -> ours
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_positions",
}


def is_huggingface(folder: Path) -> bool:
    """Whether a folder has the config of a HF model."""
    path = folder / CONFIG
    return path.is_file() and "model_type" in read_json(path)


def huggingface_weights(folder: Path) -> list[Path]:
    """The safetensors files of a HF folder: the one, or those that its index names."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]


def load_huggingface(folder: Path | str) -> Model:
    """A Llama or Qwen3 of the HF hub as a model, float32 on the host.

    Args:
        folder: with config.json and safetensors, as `save_pretrained` or the hub leaves it.

    Raises:
        UserError: it is of another family, has a setting that is not known here, or tensors are missing or odd.
    """
    folder = Path(folder)
    config = config_from_huggingface(read_json(folder / CONFIG), str(folder / CONFIG))

    def is_needed(name: str) -> bool:
        is_copy = name == "lm_head.weight" and config.tied_head  # of the embedding
        return not is_copy and not name.endswith(".rotary_emb.inv_freq")  # older files keep what follows from theta

    return model_of(config, ((name, tensor) for name, tensor in _stored(folder) if is_needed(name)), str(folder))


def model_of(
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    source: str,
    rename: Callable[[str], str] = lambda name: name,
) -> Model:
    """A model from named tensors, float32 on the host; the padding of its vocabulary is zero.

    Args:
        source: where the tensors were found, for the error message.
        rename: what a tensor that transformers calls by the argument is called there.

    Raises:
        UserError: a tensor is missing, has another shape than the config asks for, or no place in the model.
    """
    model = Model(config, seed=None)
    wanted = {rename(name): place for name, place in _places(model)}
    with torch.no_grad():
        for table in {model.embedding.weight, model.head_weight}:
            table[config.vocab_size :] = 0
        for name, tensor in tensors:
            place = wanted.pop(name, None)
            if place is None or place.shape != tensor.shape:
                found = "which has no place in it" if place is None else f"not {tuple(place.shape)}"
                raise UserError(
                    f"{source}: tensor {name} has shape {tuple(tensor.shape)}, {found} by its config; only plain "
                    f"{' and '.join(FAMILIES)} models can be loaded"
                )
            place.copy_(tensor)
    if wanted:
        raise UserError(f"{source}: {len(wanted)} tensors are missing, such as {min(wanted)}; download it again")
    return model


def export_huggingface(model: Model, out: Path | str) -> None:
    """Write a model as `AutoModelForCausalLM.from_pretrained(out)` reads it: config.json and model.safetensors.

    Raises:
        UserError: neither family can say what the model computes: it has experts, or layers with a window.
    """
    out = Path(out)
    if model.config.variants:
        raise UserError(
            f"{out}: a {' or '.join(FAMILIES)} of transformers has no {model.config.variants}, and would compute other "
            "logits from the same weights; generate and score with seqmill, or train without"
        )
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: place.detach().contiguous().cpu() for name, place in _places(model)}
    write_tensors(out / WEIGHTS, tensors, {"format": "pt"})
    write_json(out / CONFIG, config_to_huggingface(model.config, str(model.head_weight.dtype).removeprefix("torch.")))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; safetensors leaves its files to their owner alone
        save_file(dict(tensors), temporary, metadata)
        temporary.chmod(mode)


def config_from_huggingface(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The shape that a HF config.json describes.

    Args:
        source: where `values` were found, for the error message.

    Raises:
        UserError: it describes no decoder that can be built here.
    """
    family = values.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{source}: model_type {family!r} cannot be loaded; {' and '.join(FAMILIES)} can")
    for name, harmless in _UNSUPPORTED.items():
        if values.get(name) is not None and values[name] not in harmless:
            raise UserError(f"{source}: {name} = {values[name]!r} is not known here; only {harmless[0]!r} is")
    missing = sorted(_SIZES.keys() - values.keys())
    if missing:
        raise UserError(f"{source} has no {missing[0]!r}; it describes no whole model")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    heads = values["num_attention_heads"]
    return ModelConfig(
        **{ours: values[theirs] for theirs, ours in _SIZES.items()},
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or (128 if family == "qwen3" else values["hidden_size"] // heads),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        norm_eps=values.get("rms_norm_eps") or 1e-6,
        tied_head=bool(values.get("tie_word_embeddings")),
        qk_norm=family == "qwen3",
        rope_scaling=_scaling_of(rope, source),
    )


def _scaling_of(rope: Mapping[str, Any], source: str) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise UserError(f"{source}: rope type {kind!r} is not known here; default, linear and llama3 are")
    if rope.get("factor") is None:
        raise UserError(f"{source}: rope type {kind!r} has no factor; download it again")
    more = {ours: rope[theirs] for theirs, ours in _LLAMA3.items() if kind == "llama3" and theirs in rope}
    return RopeScaling(kind, float(rope["factor"]), **more)


def config_to_huggingface(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The HF config.json of a shape; its family is qwen3 where query and key heads are normalised."""
    family = "qwen3" if config.qk_norm else "llama"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        scaling = asdict(config.rope_scaling)
        rope |= {"rope_type": scaling["kind"], "factor": scaling["factor"]}
        rope |= {theirs: scaling[ours] for theirs, ours in _LLAMA3.items() if scaling["kind"] == "llama3"}
    is_scaled = config.rope_scaling is not None
    return {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": False,
        "bos_token_id": None,  # ours are in the tokenizer; what transformers takes for granted would end texts at id 2
        "eos_token_id": None,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,  # where versions of transformers before 5 look
        "rope_scaling": {name: value for name, value in rope.items() if name != "rope_theta"} if is_scaled else None,
        "torch_dtype": dtype,
    }


def _places(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the HF checkpoint, as a view of ours."""
    config = model.config
    yield "model.embed_tokens.weight", model.embedding.weight[: config.vocab_size]
    yield "model.norm.weight", model.norm.weight
    if model.head is not None:
        yield "lm_head.weight", model.head.weight[: config.vocab_size]
    sizes = [config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
    for layer in range(config.layers):
        names = _OF_LAYER | (_OF_HEADS if config.qk_norm else {})
        weight = partial(_weight, model, layer)
        parts = {theirs: weight(ours) for theirs, ours in names.items()}
        parts |= {f"self_attn.{name}_proj": part for name, part in zip("qkv", weight("qkv").split(sizes), strict=True)}
        parts |= dict(zip(("mlp.gate_proj", "mlp.up_proj"), weight("gate_up").chunk(2), strict=True))
        yield from ((f"model.layers.{layer}.{name}.weight", part) for name, part in parts.items())


def _weight(model: Model, layer: int, name: str) -> Tensor:
    return model.get_parameter(f"blocks.{layer}.{name}.weight")


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of all safetensors files of a folder, one at a time."""
    for path in huggingface_weights(folder):
        if not path.is_file():
            raise UserError(f"there is no {path}; weights must be safetensors, download it again")
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file ({error}); download it again") from error
