"""Where repeated data harms a model: the damage band of Hernandez et al. 2022, "Scaling Laws and Interpretability of
Learning from Repeated Data" (arXiv 2205.10487).

They trained models of 1.5 M to 800 M parameters N on data of which a small part is repeated E times. Harm was largest
for E between 4.2e6 * N^-0.56 and 5.1e7 * N^-0.50: 43 to 1,800 times for 800 M parameters. Outside these sizes the band
is an extrapolation.
"""

from collections.abc import Mapping
from typing import Any

_FROM = (4.2e6, -0.56)
_TO = (5.1e7, -0.50)


def damage_band(parameters: int) -> tuple[float, float]:
    """The repetitions between which a model of this many parameters is harmed most."""
    (low, low_power), (high, high_power) = _FROM, _TO
    return low * parameters**low_power, high * parameters**high_power


def damage_report(epochs: Mapping[str, float], parameters: int) -> dict[str, Any]:
    """What a manifest says about the band: its limits, and the sources whose epochs lie within ("harmful") or above
    ("beyond": learnt by heart, at the cost of the compute spent on them)."""
    low, high = damage_band(parameters)
    return {
        "parameters": parameters,
        "from_epochs": round(low, 1),
        "to_epochs": round(high, 1),
        "harmful": [source for source, times in epochs.items() if low <= times <= high],
        "beyond": [source for source, times in epochs.items() if times > high],
    }


def damage_lines(report: Mapping[str, Any], epochs: Mapping[str, float]) -> list[str]:
    """A `damage_report` for people: the band, and a warning per source that lies in it or above."""
    model = f"a model of {report['parameters']:,} parameters"
    band = f"{report['from_epochs']:,} to {report['to_epochs']:,} epochs harm {model} most (Hernandez et al. 2022)"
    return [
        band,
        *(f"warning: {name} is seen {epochs[name]:,} times, inside this band" for name in report["harmful"]),
        *(f"warning: {name} is seen {epochs[name]:,} times, beyond this band" for name in report["beyond"]),
    ]
