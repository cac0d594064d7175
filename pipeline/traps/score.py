"""Was the model trained on the members? Three membership tests per trap, and how well each tells the halves apart.

    loss   mean negative log-probability of the trap's tokens, nats
    ratio  perplexity / perplexity under a reference checkpoint, or without one
    zlib   loss / bits of the compressed text (Carlini et al. 2021, arXiv 2012.07805)
    min_k  mean negative log-probability of the least likely tokens (Shi et al. 2023, arXiv 2310.16789)

Every test is lower for what the model has seen. A trap is scored as it stands in documents, behind a space, but
without other context; its first token is given.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.pipeline.model_steps import LanguageModel, open_language_model
from seqmill.pipeline.traps.config import ScoreConfig
from seqmill.pipeline.traps.metrics import separation
from seqmill.pipeline.traps.spans import encode_behind_space
from seqmill.pipeline.traps.table import read_traps
from seqmill.storage import FORMAT_VERSION, atomic_path, hash_file, write_json

SCORES_TABLE, SCORES = "scores.parquet", "scores.json"


def score_traps(
    checkpoint: Path, traps: Path, config: ScoreConfig, out: Path, reference: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Score all traps of a file, and write OUT/scores.parquet and OUT/scores.json, which is returned.

    Args:
        checkpoint: the model under test, a training folder or one of its checkpoints.
        traps: the traps.parquet that `inject` wrote (or `make`: then all members count as injected 0 times).
        reference: a checkpoint that has not seen the traps, with a tokenizer of its own.

    Returns:
        tests: name -> what a low value means; groups: {"tokens", "copies", TEST: `Separation` as JSON} for all traps
        (None, None), then for the members of each length and number of copies against all non-members of the length.

    Raises:
        UserError: a checkpoint or the traps cannot be read, or there are only members or only non-members.
    """
    table = read_traps(traps)
    member = table["member"].to_numpy()
    if member.all() or not member.any():
        raise UserError(f"{traps} has {int(member.sum())} members among {len(member)} traps: both kinds are needed")
    texts = table["text"].to_pylist()
    model = open_language_model(checkpoint, device)
    log_p = _log_probabilities(model, texts)
    loss = _mean_loss(log_p)
    values = {"loss": loss, "min_k": np.array([min_k_loss(each, config.min_k) for each in log_p])}
    tests = {"loss": "nats per token", "min_k": f"nats per token, the least likely {config.min_k:g} of the tokens"}
    fingerprints = {"checkpoint": model.fingerprint}
    if reference is None:
        values["zlib"] = loss / np.array([8 * len(zlib.compress(text.encode())) for text in texts])
        tests["zlib"] = "loss / bits of the text compressed by zlib"
    else:
        other = open_language_model(reference, device)
        values["ratio"] = np.exp(loss - _mean_loss(_log_probabilities(other, texts)))
        tests["ratio"] = "perplexity / perplexity under the reference checkpoint"
        fingerprints["reference"] = other.fingerprint
    for name, column in values.items():
        table = table.append_column(name, pa.array(column, pa.float64()))
    with atomic_path(out / SCORES_TABLE) as temporary:
        pq.write_table(table.replace_schema_metadata(), temporary, compression="zstd")
    report = {
        "format_version": FORMAT_VERSION,
        "kind": "trap scores",
        "traps": hash_file(traps),
        **fingerprints,
        "config": asdict(config),
        "tests": tests,
        "groups": list(_groups(table, values, config)),
    }
    write_json(out / SCORES, report)
    return report


def min_k_loss(log_p: np.ndarray, share: float) -> float:
    """Mean negative log-probability of the least likely `share` of the tokens: rounded down, at least one."""
    count = max(1, int(share * len(log_p)))
    return float(-np.sort(log_p)[:count].mean(dtype=np.float64))


def _log_probabilities(model: LanguageModel, texts: Sequence[str]) -> list[np.ndarray]:
    return model.log_probabilities([ids.tolist() for ids in encode_behind_space(model.encoder, texts)])


def _mean_loss(log_p: Sequence[np.ndarray]) -> np.ndarray:
    """float64[traps]: nats per token."""
    return np.array([-each.mean(dtype=np.float64) for each in log_p])


def _groups(table: pa.Table, values: dict[str, np.ndarray], config: ScoreConfig) -> Iterator[dict[str, Any]]:
    """All traps, then every length and number of copies."""
    member, tokens, copies = (table[name].to_numpy() for name in ("member", "tokens", "copies"))
    cells = sorted(set(zip(tokens[member].tolist(), copies[member].tolist(), strict=True)))
    for length, times in [(None, None), *cells]:
        chosen = member if length is None else member & (tokens == length) & (copies == times)
        against = ~member if length is None else ~member & (tokens == length)
        if against.any():
            found = {
                name: asdict(separation(column[chosen], column[against], config.bootstrap, config.seed))
                for name, column in values.items()
            }
            yield {"tokens": length, "copies": times, **found}
