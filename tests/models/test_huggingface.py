"""Models of transformers and ours are the same functions of their weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, load
from seqmill.models.attention import Segments
from seqmill.models.config import RopeScaling
from seqmill.models.huggingface import config_from_huggingface, export_huggingface, load_huggingface
from seqmill.models.moe import MixtureOfExperts
from their_models import LLAMA3, SIZES, THEIRS, saved

IDS = torch.randint(101, (200,), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def their_logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS[None]).logits[0]


@torch.no_grad()
def our_logits(model: Model) -> torch.Tensor:
    segments = Segments.of([len(IDS)])
    return model.logits(model(IDS, segments.positions(), segments))


def assert_equal_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", THEIRS)
def test_their_models_have_the_same_logits_here(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path)
    ours = load(tmp_path)
    assert_equal_logits(our_logits(ours), their_logits(theirs))
    assert ours.config.qk_norm == (kind == "qwen3")
    assert not ours.head_weight[ours.config.vocab_size :].any()


def test_weights_in_several_files_are_put_together(tmp_path: Path) -> None:
    theirs = saved("qwen3", tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal_logits(our_logits(load_huggingface(tmp_path)), their_logits(theirs))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 64)])
def test_our_models_have_the_same_logits_there(
    qk_norm: bool, tied: bool, scaling: RopeScaling | None, tmp_path: Path
) -> None:
    config = ModelConfig(
        101, 48, 2, 4, 2, 16, 80, rope_theta=5e4, qk_norm=qk_norm, tied_head=tied, rope_scaling=scaling
    )
    ours = Model(config, seed=1)
    export_huggingface(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_equal_logits(our_logits(ours), their_logits(theirs))
    again = load_huggingface(tmp_path)
    assert again.config == config
    assert torch.equal(our_logits(again), our_logits(ours))


@torch.no_grad()
def test_a_layer_of_experts_is_the_block_of_qwen3_moe_and_of_mixtral_with_the_same_weights() -> None:
    layer = MixtureOfExperts(ModelConfig(101, 48, 2, 4, 2, 16, 80, experts=6, experts_per_token=2))
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.normal_(0.0, 0.2, generator=generator)
    weights = {"gate.weight": layer.router.weight, "experts.gate_up_proj": layer.gate_up.weight}
    weights["experts.down_proj"] = layer.down.weight
    sizes: dict[str, Any] = {"hidden_size": 48, "num_experts_per_tok": 2}
    qwen3 = Qwen3MoeConfig(**sizes, num_experts=6, moe_intermediate_size=80, norm_topk_prob=True)
    mixtral = MixtralConfig(**sizes, num_local_experts=6, intermediate_size=80)
    x = torch.randn(200, 48, generator=generator)
    for block in (Qwen3MoeSparseMoeBlock(qwen3), MixtralSparseMoeBlock(mixtral)):
        block.load_state_dict(weights)
        assert_equal_logits(layer(x), block.eval()(x[None])[0])


@pytest.mark.parametrize("variants", [{"window": 8}, {"nope_every": 2}], ids=str)
def test_what_their_families_cannot_say_is_not_exported(variants: dict[str, int], tmp_path: Path) -> None:
    shape = ModelConfig(vocab_size=100, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, **variants)
    with pytest.raises(UserError, match=rf"llama or qwen3 of transformers has no .*{next(iter(variants))}"):
        export_huggingface(Model(shape), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' cannot be loaded; llama and qwen3 can"),
        ({"attention_bias": True}, "attention_bias = True is not known here"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not known here"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope type 'linear' has no factor"),
        ({"num_hidden_layers": 3}, "tensors are missing, such as model.layers.2"),
        ({"intermediate_size": 96}, r"has shape \(48, 80\), not \(48, 96\)|has shape \(80, 48\), not \(96, 48\)"),
    ],
)
def test_other_architectures_are_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    change_config(tmp_path, **values)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}
    save_file({**load_file(path), **bias}, path)
    with pytest.raises(UserError, match=r"q_proj\.bias has shape .* which has no place in it"):
        load(tmp_path)


def test_older_files_may_hold_what_follows_from_the_config(tmp_path: Path) -> None:
    theirs = saved("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, path)
    assert_equal_logits(our_logits(load(tmp_path)), their_logits(theirs))


def test_damaged_and_missing_weights_are_one_clear_error(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="is no safetensors file"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights must be safetensors"):
        load(tmp_path)


def test_the_older_way_to_write_positions_is_read() -> None:
    older = {**SIZES, "model_type": "llama", "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_theta": None}}
    config = config_from_huggingface(older, "config.json")
    assert (config.rope_theta, config.rope_scaling) == (5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 64))
