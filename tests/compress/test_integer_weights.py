import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seqmill.compress.integer_weights import (
    DecoderShape,
    IntegerWeights,
    quantise_decoder,
    read_weights,
    write_weights,
)
from seqmill.errors import UserError
from seqmill.storage import read_arrow, write_arrow

TINY = Path(__file__).parent / "data" / "tiny-transformer.arrow"
SHAPE = DecoderShape(dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn_dim=12, positions=5)


def float_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"embedding.weight": (320, 8), "norm.weight": (8,)}
    for name, (outputs, inputs) in SHAPE.matrices().items():
        if name != "head":
            shapes[f"blocks.{name}.weight"] = (outputs, inputs)
    shapes |= {"blocks.0.attention_norm.weight": (8,), "blocks.0.ffn_norm.weight": (8,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def quantised(floats: dict[str, np.ndarray]) -> IntegerWeights:
    return quantise_decoder(floats, SHAPE, start_id=256, rope_theta=10_000.0, norm_eps=1e-5)


def test_a_row_of_integers_with_its_multiplier_is_the_row_of_floats_to_half_a_step() -> None:
    floats = float_weights()
    weights = quantised(floats)
    wanted = floats["blocks.0.gate_up.weight"] * floats["blocks.0.ffn_norm.weight"]
    rows = weights.tensors["0.gate_up"].astype(float)
    # an input of 127 with the scale 2**16 is the number 1 in the 16 bits of scales; outputs have 10 bits
    factor = weights.tensors["0.gate_up.multipliers"] / 2.0 ** weights.tensors["0.gate_up.shift"][0]
    found = rows * 127 * 2.0**16 * factor[:, None] / 2**10
    steps = np.abs(wanted).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - wanted) <= 0.51 * steps).all()
    assert np.abs(rows).max(axis=1).tolist() == [127] * len(rows)


def test_the_start_has_the_row_behind_the_bytes() -> None:
    floats = float_weights()
    table = quantised(floats).tensors["embedding"]
    np.testing.assert_array_equal(table, np.rint(floats["embedding.weight"][:257] * 2**16))


def test_the_head_is_its_own_where_there_is_one() -> None:
    floats = float_weights()
    tied = quantised(floats).tensors
    own = quantised({**floats, "head.weight": floats["embedding.weight"] * -1}).tensors
    np.testing.assert_array_equal(own["head"], -tied["head"])
    np.testing.assert_array_equal(own["embedding"], tied["embedding"])


def test_powers_of_two_are_rounded_down_exactly() -> None:
    powers = quantised(float_weights()).tensors["exp2"]
    for i, power in enumerate(powers.tolist()):
        exact = 1 << (30 * 256 - i)
        for _ in range(8):  # eight square roots are the 256th root, and rounding down each time is rounding down once
            exact = math.isqrt(exact)
        assert power == exact


def test_sigmoids_are_right_to_half_a_step() -> None:
    table = quantised(float_weights()).tensors["sigmoid"]
    for i in range(0, len(table), 97):
        x = Decimal(4 * i + 1) / 2048
        assert abs(int(table[i]) - 2**15 / (1 + (-x).exp())) <= Decimal("0.5000001")


def test_a_row_of_zeros_stays_one() -> None:
    floats = float_weights()
    floats["blocks.0.down.weight"][3] = 0
    floats["blocks.0.attention_out.weight"][:] = 0
    weights = quantised(floats).tensors
    assert weights["0.down"][3].tolist() == [0] * 12
    assert weights["0.down.multipliers"][3] == 0
    assert not weights["0.attention_out"].any()


def test_absurd_weights_are_refused() -> None:
    floats = float_weights()
    floats["blocks.0.down.weight"] *= 1e30
    with pytest.raises(UserError, match=r"'0\.down' has weights of up to .*e\+30"):
        quantised(floats)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_dim": 1041}, "sums 1041 products.*only 1040 are exact"),
        ({"heads": 300, "kv_heads": 1}, "sums 1200 products"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"head_dim": 5}, "head_dim be even"),
        ({"positions": 1}, "positions be from 2 to 4095"),
        ({"layers": 0}, "layers = 0"),
    ],
)
def test_a_shape_that_is_not_exact_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SHAPE, **changes)
    assert replace(SHAPE, ffn_dim=1040).ffn_dim == 1040


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    weights = quantised(float_weights())
    write_weights(tmp_path / "model.arrow", weights)
    found = read_weights(tmp_path / "model.arrow")
    assert found.shape == SHAPE
    assert found.fingerprint == weights.fingerprint
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert quantised(float_weights(1)).fingerprint != weights.fingerprint


def test_a_changed_number_is_found(tmp_path: Path) -> None:
    data = bytearray(TINY.read_bytes())
    place = data.index(read_weights(TINY).tensors["1.down"].tobytes())
    data[place] ^= 1
    (tmp_path / "model.arrow").write_bytes(data)
    with pytest.raises(UserError, match="the hash differs"):
        read_weights(tmp_path / "model.arrow")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = TINY.read_bytes()
    (tmp_path / "model.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read"):
        read_weights(tmp_path / "model.arrow")
    with pytest.raises(UserError, match="cannot read"):
        read_weights(tmp_path / "missing.arrow")


def test_another_table_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": [1]})
    write_arrow(tmp_path / "other.arrow", table.schema, table.to_batches())
    with pytest.raises(UserError, match="not an integer-transformer"):
        read_weights(tmp_path / "other.arrow")


def test_a_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    table = read_arrow(TINY)
    write_arrow(tmp_path / "model.arrow", table.schema, table.slice(1).to_batches())
    with pytest.raises(UserError, match=r"such as '0\.attention_out'"):
        read_weights(tmp_path / "model.arrow")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head", np.full((256, 8), -128, np.int8), "-127 to 127"),
        ("0.down.shift", np.array([62]), "1 to 61"),
        ("epsilon", np.array([63]), "numbers from 63"),
        ("score_multiplier", np.array([2**18]), "1 to 131072"),
        ("exp2", np.zeros(256, np.int32), "1 to 1073741824"),
        ("sines", np.zeros((4, 2), np.int16), r"int16\[4, 2\], not int16\[5, 2\]"),
        ("embedding", np.zeros((257, 8)), "float64.* not int32"),
    ],
)
def test_numbers_that_could_overflow_or_divide_by_zero_are_refused(name: str, value: np.ndarray, message: str) -> None:
    weights = quantised(float_weights())
    with pytest.raises(UserError, match=f"'{name}'.*{message}"):
        replace(weights, tensors={**weights.tensors, name: value})
