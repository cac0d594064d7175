"""Writing traps: candidates at several temperatures, cut to an exact number of tokens, sorted into buckets of
perplexity, and kept where they are unlike every trap before (Meeus et al. 2024, section 4)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline.model_steps import LanguageModel, open_language_model
from seqmill.pipeline.tokenize import describe_tokenizer
from seqmill.pipeline.traps.config import MakeConfig
from seqmill.pipeline.traps.spans import bytes_per_id, decode_ids, encode_behind_space, encode_texts
from seqmill.pipeline.traps.table import SCHEMA, write_traps
from seqmill.pipeline.traps.words import SMOOTHING, WordModel
from seqmill.storage import FORMAT_VERSION, hash_file, write_json
from seqmill.tokenizers_ext import Encoder, load

TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0)
CANDIDATES = 64  # of one round
FRUITLESS = 4  # rounds in a row without a new trap, after which a temperature is given up
SLACK = 16  # tokens that a model writes beyond the length, since the cut falls between words


class Writer(Protocol):
    """What writes candidates and tells their perplexity."""

    def write(self, tokens: int, temperature: float, seed: Sequence[int]) -> list[str]:
        """`CANDIDATES` texts of `tokens` tokens or more, where possible."""
        ...

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """Of every text, under the model that writes."""
        ...


class WordWriter:
    """Writes with a word bigram model."""

    def __init__(self, model: WordModel) -> None:
        self._model = model

    def write(self, tokens: int, temperature: float, seed: Sequence[int]) -> list[str]:
        """See `Writer.write`; every word has at least one token."""
        return self._model.write(tokens + 1, CANDIDATES, temperature, np.random.default_rng(seed))

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """See `Writer.perplexities`: per word."""
        return [self._model.perplexity(text) for text in texts]


class ModelWriter:
    """Writes with a trained checkpoint, each text behind a random token that is not part of it."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def write(self, tokens: int, temperature: float, seed: Sequence[int]) -> list[str]:
        """See `Writer.write`; texts with broken characters are left out."""
        encoder = self._model.encoder
        random = np.random.default_rng(seed)
        ordinary = np.setdiff1d(np.arange(encoder.vocab_size), list(encoder.special_ids.values()))
        prompts = random.choice(ordinary, (CANDIDATES, 1)).tolist()
        written = self._model.sample(prompts, tokens + SLACK, temperature, int(random.integers(2**31)))
        texts = [decode_ids(encoder, np.array(ids, np.uint32)).decode(errors="replace") for ids in written if ids]
        return [" ".join(text.split()) for text in texts if "\ufffd" not in text]

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """See `Writer.perplexities`: per token behind the first."""
        ids = [each.tolist() for each in encode_behind_space(self._model.encoder, texts)]
        return [float(np.exp(-log_p.mean(dtype=np.float64))) for log_p in self._model.log_probabilities(ids)]


class Shelf:
    """The traps kept so far: room in the buckets, and an index that finds similar ones."""

    def __init__(self, config: MakeConfig) -> None:
        self.config = config
        self.traps: list[dict[str, Any]] = []
        self.made: dict[int, list[int]] = {length: [0] * config.buckets for length in config.lengths}
        self._sizes: list[int] = []  # different ids of each trap
        self._holders: dict[int, list[int]] = {}  # id -> the traps that hold it

    def wanted(self, bucket: int) -> int:
        """Room of a bucket: the count shared out evenly, what remains to the first ones."""
        each, rest = divmod(self.config.count, self.config.buckets)
        return each + (bucket < rest)

    def is_full(self, length: int) -> bool:
        """Whether all traps of a length are there."""
        return sum(self.made[length]) == self.config.count

    def offer(self, text: str, ids: np.ndarray, perplexity: float) -> bool:
        """Keep a candidate if its bucket has room and nothing kept is like it."""
        low, high = self.config.perplexity
        bucket = int((perplexity - low) / (high - low) * self.config.buckets) if low <= perplexity < high else -1
        made = self.made[len(ids)]
        if bucket < 0 or made[bucket] == self.wanted(bucket) or self.nearest(ids) > self.config.max_jaccard:
            return False
        different = np.unique(ids).tolist()
        for id_ in different:
            self._holders.setdefault(id_, []).append(len(self._sizes))
        self._sizes.append(len(different))
        made[bucket] += 1
        self.traps.append({"text": text, "tokens": len(ids), "perplexity": perplexity, "bucket": bucket})
        return True

    def nearest(self, ids: np.ndarray) -> float:
        """The largest Jaccard similarity of a candidate's set of ids to that of a kept trap; 0 without any."""
        if not self._sizes:
            return 0.0
        different = np.unique(ids).tolist()
        holders = [trap for id_ in different for trap in self._holders.get(id_, ())]
        shared = np.bincount(np.array(holders, np.int64), minlength=len(self._sizes))
        return float((shared / (np.array(self._sizes) + len(different) - shared)).max())


def make_traps(
    tokenizer: Path,
    out: Path,
    config: MakeConfig,
    reference: Path | None = None,
    model: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write traps to the Parquet file `out`, and beside it a manifest (`out` with suffix .json), which it returns.

    Args:
        tokenizer: lengths are counted with it.
        reference: documents folder whose words traps are made of; or else
        model: a checkpoint that writes them.
        device: where the model runs, "cpu" or "cuda".

    Raises:
        UserError: not exactly one of `reference` and `model`, or no pair of traps of some length could be made.
    """
    if (reference is None) == (model is None):
        raise UserError("traps need one source of text: give either --reference DOCUMENTS or --model CHECKPOINT")
    if out.suffix == ".json":
        raise UserError(f"--out {out}: the traps are a Parquet file, and its manifest takes the name *.json")
    encoder = load(tokenizer)
    writer, source = _open_writer(config, reference, model, device)
    shelf = Shelf(config)
    for length in config.lengths:
        _fill(shelf, length, encoder, writer)
        if sum(shelf.made[length]) < 2:
            raise UserError(
                f"{sum(shelf.made[length])} of {config.count} traps of {length} tokens could be made: raise "
                f"--max-jaccard (now {config.max_jaccard}), widen --perplexity, or take a larger vocabulary or "
                "reference"
            )
    is_member = _choose_members(shelf.traps, config.seed)
    rows = [
        {"trap_id": index, **trap, "member": bool(member), "copies": 0}
        for index, (trap, member) in enumerate(zip(shelf.traps, is_member, strict=True))
    ]
    made = {"tokenizer": describe_tokenizer(encoder), "config": _as_json(config), "source": source}
    write_traps(out, pa.Table.from_pylist(rows, SCHEMA), **made)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "traps",
        "file": out.name,
        "xxh3_128": hash_file(out),
        **made,
        "totals": {"traps": len(rows), "members": int(is_member.sum()), "wanted": config.count * len(config.lengths)},
        "buckets": list(_bucket_table(shelf)),
    }
    write_json(out.with_suffix(".json"), manifest)
    return manifest


def _open_writer(
    config: MakeConfig, reference: Path | None, model: Path | None, device: str
) -> tuple[Writer, dict[str, Any]]:
    """What writes the traps, and how manifests name it."""
    if model is not None:
        language_model = open_language_model(model, device)
        perplexity = "of the checkpoint, per token, behind a space, the first token given"
        return ModelWriter(language_model), {"model": language_model.fingerprint, "perplexity": perplexity}
    assert reference is not None
    words = WordModel.of_documents(reference, config.reference_bytes, config.words, config.seed)
    fingerprint = open_manifest(reference)["fingerprint"]
    return WordWriter(words), {"reference": fingerprint, "words": len(words.words), "perplexity": SMOOTHING}


def _fill(shelf: Shelf, length: int, encoder: Encoder, writer: Writer) -> None:
    """Offer candidates of one length, temperature after temperature, until all buckets are full, every temperature
    has been fruitless for a while, or the rounds are over."""
    fruitless = dict.fromkeys(TEMPERATURES, 0)
    for number in range(shelf.config.rounds):
        hopeful = [temperature for temperature in TEMPERATURES if fruitless[temperature] < FRUITLESS]
        if shelf.is_full(length) or not hopeful:
            return
        temperature = hopeful[number % len(hopeful)]
        texts = writer.write(length, temperature, [shelf.config.seed, length, number])
        fitting = list(cut_to_length(texts, length, encoder))
        perplexities = writer.perplexities([text for text, _ in fitting]) if fitting else []
        kept = sum(shelf.offer(*each, perplexity) for each, perplexity in zip(fitting, perplexities, strict=True))
        fruitless[temperature] = 0 if kept else fruitless[temperature] + 1


def cut_to_length(texts: Sequence[str], length: int, encoder: Encoder) -> Iterator[tuple[str, np.ndarray]]:
    """The beginnings of texts that have exactly `length` tokens, end between words, and keep their tokens when they are
    encoded again ("retokenize"), also behind a space (all but the first token, which the space may join).

    Texts without such a beginning are left out. With words of 1, 2 and 2 tokens, "a bb cc" can be cut to 3 tokens,
    "a bb", and not to 2.
    """
    sizes = bytes_per_id(encoder)
    whole = [(text.encode(), ids) for text, ids in zip(texts, encode_texts(encoder, texts), strict=True)]
    ends = [(data, int(sizes[ids[:length]].sum()), ids[:length]) for data, ids in whole if len(ids) >= length]
    between = [(data[:end], ids) for data, end, ids in ends if data[end : end + 1] in (b"", b" ")]
    pieces = [(data.decode(), ids) for data, ids in between if data and data == data.strip()]
    if not pieces:
        return
    again = encode_texts(encoder, [text for text, _ in pieces])
    behind = encode_behind_space(encoder, [text for text, _ in pieces])
    for (text, ids), found, spaced in zip(pieces, again, behind, strict=True):
        if np.array_equal(found, ids) and np.array_equal(spaced[-(length - 1) :], ids[1:]):
            yield text, ids


def _choose_members(traps: Sequence[Mapping[str, Any]], seed: int) -> np.ndarray:
    """bool[traps]: of every two traps of a length that are neighbours in perplexity one is a member, by the toss of a
    coin: both halves are equally hard to foresee. One without a neighbour is no member."""
    random = np.random.default_rng([seed, 1])
    order = sorted(range(len(traps)), key=lambda trap: (traps[trap]["tokens"], traps[trap]["perplexity"], trap))
    is_member = np.zeros(len(traps), bool)
    for length in sorted({trap["tokens"] for trap in traps}):
        alike = [trap for trap in order if traps[trap]["tokens"] == length]
        for first, second in zip(alike[::2], alike[1::2], strict=False):
            is_member[first if random.random() < 0.5 else second] = True
    return is_member


def _bucket_table(shelf: Shelf) -> Iterator[dict[str, Any]]:
    """What was wanted and made of every bucket; "made" below "wanted" means that tries were exhausted."""
    low, high = shelf.config.perplexity
    width = (high - low) / shelf.config.buckets
    for length, made in shelf.made.items():
        for bucket, count in enumerate(made):
            limits = {"from": round(low + bucket * width, 6), "to": round(low + (bucket + 1) * width, 6)}
            yield {"tokens": length, "bucket": bucket, **limits, "wanted": shelf.wanted(bucket), "made": count}


def _as_json(config: MakeConfig) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
