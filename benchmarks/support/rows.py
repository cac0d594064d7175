"""One figure of a benchmark."""

Row = dict[str, object]


def row(case: str, system: str, value: float, unit: str, higher_is_better: bool) -> Row:
    """A row of `seqmill bench --json`; values are rounded to four significant digits."""
    shown = float(f"{value:.4g}")
    return {
        "case": case,
        "system": system,
        "value": int(shown) if shown.is_integer() else shown,
        "unit": unit,
        "higher_is_better": higher_is_better,
    }
