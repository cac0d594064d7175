import pytest

from seqmill.pipeline.mixing.damage import damage_band, damage_report


@pytest.mark.parametrize(
    ("parameters", "low", "high"), [(800_000_000, 43, 1_800), (124_000_000, 123, 4_580), (7_000_000_000, 13, 610)]
)
def test_the_band_is_that_of_the_paper(parameters: int, low: float, high: float) -> None:
    assert damage_band(parameters) == (pytest.approx(low, rel=0.03), pytest.approx(high, rel=0.01))


def test_sources_inside_and_beyond_the_band_are_named() -> None:
    report = damage_report({"once": 1.0, "hurts": 100.0, "learnt": 5000.0}, 800_000_000)
    assert (report["harmful"], report["beyond"]) == (["hurts"], ["learnt"])
