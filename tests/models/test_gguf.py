"""A GGUF file is the model it was made of, beside the reader that transformers has for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.modeling_utils
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from seqmill.errors import UserError
from seqmill.models import generate, load
from seqmill.models.attention import Segments
from seqmill.models.config import RopeScaling
from seqmill.models.gguf import import_gguf
from seqmill.models.rotary import rotary_frequencies
from seqmill.pipeline.model_steps import import_model, open_language_model
from seqmill.tokenizers_ext import load as load_tokenizer
from seqmill.tokenizers_ext.byte_alphabet import printable

# how far logits may be from those of the weights themselves, beside their standard deviation
ERRORS = {"F32": 2e-5, "F16": 2e-2, "Q8_0": 0.4}
TOKENS = ["<|endoftext|>", *(printable(bytes([byte])) for byte in range(256)), "ab", "<|im_end|>"]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
}
THEIRS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    # their reader takes heads of Qwen3 to be 128 wide, whatever the file says
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "head_dim": 128})),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "rope": "rope_freqs",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{f"self_attn.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
IDS = torch.randint(len(TOKENS), (50,), generator=torch.Generator().manual_seed(0))


def made(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    model = THEIRS[kind]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
            elif "embed" not in name:
                weight.mul_(4)
    return model.eval()


def write(path: Path, model: Any, type_: str = "F32", leave_out: str = "", **changes: Any) -> Path:
    """As llama.cpp's converter writes it: names, order of rows in q and k, matrices quantised."""
    family, head_dim = model.config.model_type, model.config.head_dim
    writer = GGUFWriter(path, family)
    settings = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 3e-5,
        "rope.freq_base": 50_000.0,
        "rope.dimension_count": head_dim,
        **changes,
    }
    for name, value in settings.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        if value is not None:
            add[type(value)](name if name.startswith(("general.", "split.")) else f"{family}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, *[1] * 257, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_chat_template("{{ messages[0] }}")
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        place = name.removeprefix("model.layers.").removesuffix(".weight")
        layer, _, rest = place.partition(".") if place[0].isdigit() else ("", "", place)
        theirs = f"blk.{layer}.{NAMES[rest]}.weight" if layer else f"{NAMES[rest]}.weight"
        if theirs == leave_out or (rest == "lm_head" and model.config.tie_word_embeddings):
            continue
        if family == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = 4 if "q_proj" in rest else 2
            array = array.reshape(heads, 2, len(array) // heads // 2, 64).swapaxes(1, 2).reshape(array.shape)
        kind = GGMLQuantizationType[type_ if array.ndim > 1 else "F32"]
        writer.add_tensor(theirs, quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        part()
    return path


@torch.no_grad()
def our_logits(folder: Path) -> torch.Tensor:
    model = load(folder)
    segments = Segments.of([len(IDS)], "cpu")
    return model.logits(model(IDS, segments.positions(), segments))


@torch.no_grad()
def their_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(IDS[None]).logits[0]
    return logits


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("llama", "F32"), ("llama", "F16"), ("llama", "Q8_0"), ("llama tied", "Q8_0"), ("qwen3", "F16")],
)
def test_logits_are_those_of_transformers_reader(
    kind: str, type_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = made(kind)
    path = write(tmp_path / "model.gguf", original, type_)
    config = import_gguf(path, tmp_path / "out")
    assert (config.norm_eps, config.rope_theta, config.kv_heads) == (3e-5, 5e4, 2)
    assert config.tied_head == (kind == "llama tied")
    monkeypatch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda: True)  # it only asks for it
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = our_logits(tmp_path / "out")
    torch.testing.assert_close(ours, their_logits(theirs), atol=1e-4, rtol=1e-4)
    unquantised = their_logits(original)
    assert unquantised.std() > 0.05
    assert (ours - unquantised).abs().max() < ERRORS[type_] * unquantised.std()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(ours, their_logits(again), atol=1e-5, rtol=1e-4)


def test_the_folder_carries_its_tokenizer_and_the_end_of_its_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", made())
    figures = import_model(path, tmp_path / "out")
    assert figures["parameters"] == load(tmp_path / "out").config.parameters
    encoder = load_tokenizer(tmp_path / "out")
    assert encoder.special_ids == {"eos": len(TOKENS) - 1}
    told = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (told["eos_token"], told["chat_template"]) == ("<|im_end|>", "{{ messages[0] }}")
    model = open_language_model(tmp_path / "out")
    assert model.encoder.special_ids == encoder.special_ids
    prompt = IDS[:5].tolist()
    whole = generate(load(tmp_path / "out"), [prompt], 30)[0].tokens
    assert model.sample([prompt], 30, 0.0, 0) == [whole]


def test_the_command_line_imports_a_model_and_goes_on_from_a_text(seqmill: Callable[..., Any], tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", made())
    figures = json.loads(seqmill("import", path, "--out", "out", "--json", cwd=tmp_path).stdout)
    assert (figures["family"], figures["tokenizer"]) == ("llama", "out/tokenizer.json")
    modes = {each.stat().st_mode for each in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # weights are as readable as the rest
    (tmp_path / "prompts.txt").write_text("ab c")
    told = seqmill("generate", "out", "--prompts", "prompts.txt", "--max-new-tokens", "3", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["samples"][0]["prompt"] == "ab c"
    with pytest.raises(UserError, match="a GGUF file is read once: `seqmill import"):
        load(path)


def test_frequencies_of_llama3_are_recognised(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    factors = rotary_frequencies(32, 5e4) / rotary_frequencies(32, 5e4, scaling)
    model = made()
    model.register_buffer("rope", factors)
    assert import_gguf(write(tmp_path / "model.gguf", model), tmp_path / "out").rope_scaling == scaling
    model.rope.mul_(1.01)
    with pytest.raises(UserError, match=r"rope_freqs.weight are not those of llama3"):
        import_gguf(write(tmp_path / "other.gguf", model), tmp_path / "other")


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", made(), **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert import_gguf(path, tmp_path / "out").rope_scaling == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"general.architecture": "mamba"}, r"general.architecture 'mamba' cannot be read; llama and qwen3 can"),
        ({"split.count": 3}, "it is one of 3 parts of a model"),
        ({"attention.sliding_window": 64}, "llama.attention.sliding_window = 64 is not known here"),
        ({"expert_count": 8}, "llama.expert_count = 8 is not known here"),
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn' is not known here"),
        ({"rope.dimension_count": 16}, "llama.rope.dimension_count = 16 is not the 32"),
        ({"block_count": None}, "llama.block_count = None: one number is needed"),
        ({"feed_forward_length": [96, 64]}, r"llama.feed_forward_length = \[96, 64\]: one number is needed"),
        ({"feed_forward_length": 128}, r"ffn_\w+.weight has shape \(\d+, \d+\), not \("),
        ({"block_count": 3}, "tensors are missing, such as blk.2"),
        ({"leave_out": "blk.1.attn_k.weight"}, "1 tensors are missing, such as blk.1.attn_k.weight"),
        ({"leave_out": "token_embd.weight"}, "tensor token_embd.weight is missing"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", made(), **changes)
    with pytest.raises(UserError, match=told) as caught:
        import_gguf(path, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_file_cut_short_is_one_clear_error(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", made())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"is no whole GGUF file .*; download it again"):
        import_gguf(path, tmp_path / "out")


def test_other_files_and_folders_of_training_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no such file" * 100)
    with pytest.raises(UserError, match="is no whole GGUF file"):
        import_gguf(other, tmp_path / "out")
    with pytest.raises(UserError, match="there is no file"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="whose files would be lost"):
        import_model(other, tmp_path / "run")
