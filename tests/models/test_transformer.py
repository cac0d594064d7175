"""The decoder against transformers, packed against alone, and one document against another's changes."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_reference import softmax_attention
from seqmill.models import Model, ModelConfig
from seqmill.models.attention import Segments
from seqmill.models.rotary import rotary_table

LENGTH_SETS = st.lists(st.one_of(st.just(1), st.integers(1, 50)), min_size=1, max_size=10)


def documents_of(lengths: list[int], vocab_size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def packed_logits(model: Model, documents: list[Tensor]) -> list[Tensor]:
    segments = Segments.of([len(document) for document in documents])
    logits = model.logits(model(torch.cat(documents), segments.positions(), segments))
    return list(logits.split(segments.lengths))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=LENGTH_SETS)
def test_packed_documents_get_the_logits_they_get_alone(model: Model, lengths: list[int]) -> None:
    documents = documents_of(lengths, model.config.vocab_size)
    for together, document in zip(packed_logits(model, documents), documents, strict=True):
        (alone,) = packed_logits(model, [document])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        assert together.std() > 0.1  # logits that are all alike would agree for the wrong reason


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=8), data=st.data())
def test_changing_one_document_changes_no_bit_of_the_others(
    model: Model, lengths: list[int], data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    documents = documents_of(lengths, model.config.vocab_size)
    disturbed = list(documents)
    disturbed[changed] = (documents[changed] + 1) % model.config.vocab_size
    before, after = packed_logits(model, documents), packed_logits(model, disturbed)
    for index in range(len(lengths)):
        assert torch.equal(before[index], after[index]) == (index != changed)


def test_a_token_sees_only_what_stands_before_it(model: Model) -> None:
    (document,) = documents_of([20], model.config.vocab_size)
    disturbed = document.clone()
    disturbed[12] = (disturbed[12] + 1) % model.config.vocab_size
    (before,), (after,) = packed_logits(model, [document]), packed_logits(model, [disturbed])
    assert torch.equal(before[:12], after[:12])
    assert all(not torch.equal(before[place], after[place]) for place in range(12, 20))


def test_positions_matter_only_by_their_distance(model: Model) -> None:
    (document,) = documents_of([20], model.config.vocab_size)
    segments = Segments.of([20])
    with torch.no_grad():
        near, far, stretched = (
            model(document, positions, segments)
            for positions in (segments.positions(), segments.positions() + 100, segments.positions() * 2)
        )
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    assert (near - stretched).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    "variants",
    [{"window": 6}, {"window": 6, "sinks": 2, "full_every": 2}, {"nope_every": 2}, {"window": 6, "nope_every": 1}],
    ids=str,
)
def test_layers_see_and_turn_what_their_variants_say(config: ModelConfig, variants: dict[str, int]) -> None:
    """Layer by layer, with the attention of the definition, and tables that turn nothing where nothing is turned."""
    lengths = [1, 20, 7]
    segments, ids = Segments.of(lengths), torch.cat(documents_of(lengths, config.vocab_size))
    model, plain = (Model(dataclasses.replace(config, layers=4, **more), seed=1) for more in (variants, {}))
    table = rotary_table(segments.positions(), config.head_dim, config.rope_theta)
    still = (torch.ones_like(table[0]), torch.zeros_like(table[1]))
    x = plain.embedding(ids)
    for layer, block in enumerate(plain.blocks):
        is_full = "window" not in variants or ("full_every" in variants and layer in (1, 3))
        turns = "nope_every" not in variants or (variants["nope_every"] == 2 and layer in (0, 2))
        sees = (None, 0) if is_full else (variants["window"], variants.get("sinks", 0))
        x = block(
            x, table if turns else still, lambda _, q, k, v, s=sees: softmax_attention(q, k, v, lengths, *s).float()
        )
    found = model(ids, segments.positions(), segments)
    torch.testing.assert_close(found, plain.norm(x), atol=1e-5, rtol=1e-5)
    assert (found - plain(ids, segments.positions(), segments)).abs().max() > 1e-2


def test_the_weights_are_a_function_of_the_seed(config: ModelConfig) -> None:
    torch.manual_seed(5)
    first = Model(config, seed=3).state_dict()
    torch.manual_seed(6)
    again, other = Model(config, seed=3).state_dict(), Model(config, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_building_a_model_draws_nothing_from_the_global_generator(config: ModelConfig) -> None:
    before = torch.get_rng_state()
    Model(config, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def hugging_face_twin(model: Model) -> torch.nn.Module:
    """The Llama (or, with normalised queries and keys, the Qwen3) of transformers with the weights of `model`."""
    import transformers

    config = model.config
    family = "Qwen3" if config.qk_norm else "Llama"
    twin_config = getattr(transformers, f"{family}Config")(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tied_head,
        attention_bias=False,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    twin: torch.nn.Module = getattr(transformers, f"{family}ForCausalLM")(twin_config).eval()
    twin.load_state_dict(hugging_face_weights(model), strict=True)
    return twin


def hugging_face_weights(model: Model) -> dict[str, Tensor]:
    config, own = model.config, model.state_dict()
    weights = {
        "model.embed_tokens.weight": own["embedding.weight"][: config.vocab_size],
        "lm_head.weight": model.head_weight.detach()[: config.vocab_size],
        "model.norm.weight": own["norm.weight"],
    }
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        projections = own[ours + "qkv.weight"].split(
            [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
        )
        gate_up = own[ours + "gate_up.weight"].chunk(2)
        for name, weight in zip("qkv", projections, strict=True):
            weights[f"{theirs}self_attn.{name}_proj.weight"] = weight
        for name, weight in zip(("gate", "up"), gate_up, strict=True):
            weights[f"{theirs}mlp.{name}_proj.weight"] = weight
        weights[theirs + "mlp.down_proj.weight"] = own[ours + "down.weight"]
        weights[theirs + "self_attn.o_proj.weight"] = own[ours + "attention_out.weight"]
        weights[theirs + "input_layernorm.weight"] = own[ours + "attention_norm.weight"]
        weights[theirs + "post_attention_layernorm.weight"] = own[ours + "ffn_norm.weight"]
        if config.qk_norm:
            weights[theirs + "self_attn.q_norm.weight"] = own[ours + "q_norm.weight"]
            weights[theirs + "self_attn.k_norm.weight"] = own[ours + "k_norm.weight"]
    return weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": False},
        {"qk_norm": True},
        {"kv_heads": 4, "norm_eps": 1e-3},
        {"kv_heads": 1, "rope_theta": 500.0},
    ],
    ids=str,
)
def test_logits_are_those_of_transformers_with_the_same_weights(
    config: ModelConfig, changes: dict[str, object]
) -> None:
    model = Model(dataclasses.replace(config, **changes), seed=2)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # scales away from 1, matrices large enough to matter
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    twin = hugging_face_twin(model)
    documents = documents_of([1, 9, 30, 2], config.vocab_size)
    for ours, document in zip(packed_logits(model, documents), documents, strict=True):
        with torch.no_grad():
            theirs = twin(document[None]).logits[0]
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        assert theirs.std() > 0.1


@torch.no_grad()
def test_greedy_generation_is_that_of_transformers(model: Model) -> None:
    from seqmill.models import generate

    twin = hugging_face_twin(model)
    prompts = [document.tolist() for document in documents_of([1, 9, 30, 2], model.config.vocab_size)]
    for prompt, generated in zip(prompts, generate(model, prompts, max_new_tokens=24), strict=True):
        theirs = twin.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)  # type: ignore[operator]
        assert list(generated.tokens) == theirs[0, len(prompt) :].tolist()
