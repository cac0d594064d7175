import dataclasses
import json
from typing import Any

import pytest

from seqmill.errors import UserError
from seqmill.models import PRESETS, Model, ModelConfig
from seqmill.models.config import REFERENCE_VOCAB, RopeScaling, preset_config


@pytest.mark.parametrize(("name", "millions"), [("124m", 124), ("355m", 355), ("774m", 774), ("1.3b", 1300)])
def test_a_preset_has_the_size_in_its_name_with_the_reference_vocabulary(name: str, millions: int) -> None:
    assert preset_config(name, REFERENCE_VOCAB).parameters == pytest.approx(millions * 1e6, rel=0.02)
    assert preset_config(name, REFERENCE_VOCAB).head_dim == 128


def test_tiny_is_small_and_groups_its_heads() -> None:
    tiny = preset_config("tiny", 4096)
    assert 1.5e6 < tiny.parameters < 2.5e6
    assert tiny.kv_heads < tiny.heads


@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"qk_norm": True}, {"kv_heads": 1}])
def test_the_counted_parameters_are_those_of_the_model(config: ModelConfig, changes: dict[str, object]) -> None:
    changed = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    assert changed.parameters == sum(parameter.numel() for parameter in Model(changed).parameters())


def test_the_embedding_is_padded_to_a_multiple_of_64(config: ModelConfig) -> None:
    assert config.padded_vocab == 128
    assert Model(config).embedding.weight.shape == (128, config.dim)
    assert dataclasses.replace(config, vocab_size=128).padded_vocab == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"head_dim": 7}, "head_dim = 7.*even"),
        ({"vocab_size": 0}, "vocab_size = 0.*positive"),
        ({"window": 0}, "window = 0: must be positive"),
        ({"nope_every": -1}, "nope_every = -1: must be positive"),
        ({"sinks": 2}, "sinks = 2.*without a window"),
        ({"full_every": 2}, "full_every = 2.*without a window"),
        ({"window": 4, "sinks": -1}, "sinks = -1"),
    ],
)
def test_an_impossible_shape_is_refused(config: ModelConfig, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def test_an_unknown_preset_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(UserError, match=r"'huge'.*" + ", ".join(PRESETS)):
        preset_config("huge", 100)


def test_a_config_survives_json(config: ModelConfig) -> None:
    changed = dataclasses.replace(config, qk_norm=True, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0))
    assert ModelConfig.from_json(json.loads(json.dumps(changed.to_json())), "here") == changed
    assert "rope_scaling" not in config.to_json()


VARIANTS = {"window": 8, "sinks": 2, "full_every": 3, "nope_every": 4}


def test_variants_are_told_only_where_there_are_any(config: ModelConfig) -> None:
    fields = {"vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim"}
    assert set(config.to_json()) == fields | {
        "rope_theta",
        "norm_eps",
        "tied_head",
        "qk_norm",
    }  # as before there were any
    assert config.variants == {}
    changed = dataclasses.replace(config, **VARIANTS)  # type: ignore[arg-type]
    assert changed.variants == VARIANTS
    assert ModelConfig.from_json(json.loads(json.dumps(changed.to_json())), "here") == changed
    windowed = dataclasses.replace(config, window=8)
    assert windowed.variants == {"window": 8}
    assert set(windowed.to_json()) == {*config.to_json(), "window"}


def test_every_so_manieth_layer_is_full_and_every_so_manieth_turns_nothing(config: ModelConfig) -> None:
    changed = dataclasses.replace(config, **VARIANTS)  # type: ignore[arg-type]
    assert [changed.is_full(layer) for layer in range(7)] == [False, False, True, False, False, True, False]
    assert [changed.has_rotary(layer) for layer in range(7)] == [True, True, True, False, True, True, True]
    assert all(config.is_full(layer) and config.has_rotary(layer) for layer in range(7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "yarn", "factor": 2.0}, "'yarn' is not known here; choose one of linear, llama3"),
        ({"kind": "linear", "factor": 0.5}, "factor = 0.5: must be 1 or more"),
        ({"kind": "llama3", "factor": 2.0, "low_freq_factor": 5.0}, "must be positive and below the second"),
        ({"kind": "linear"}, "it takes factor, high_freq_factor, kind"),
        ({"kind": "linear", "factor": 2.0, "beta": 1}, "it takes factor, high_freq_factor, kind"),
    ],
)
def test_impossible_scalings_of_positions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RopeScaling.from_json(values)


def test_the_json_of_another_architecture_is_refused(config: ModelConfig) -> None:
    values = config.to_json()
    values["sliding_window"] = values.pop("dim")
    with pytest.raises(UserError, match=r"here describes no seqmill decoder.*sliding_window.*'dim'"):
        ModelConfig.from_json(values, "here")
