"""The steps of a run that need a model. The only module of the pipeline that imports `seqmill.models`, when called:
data is prepared on machines without torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST
from seqmill.pipeline.excerpts import ExcerptConfig, draw_excerpts
from seqmill.pipeline.execution import Executor, Progress
from seqmill.pipeline.executors import RayExecutor
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.settings import build
from seqmill.storage import atomic_path, fingerprint, hash_file, write_json
from seqmill.tokenizers_ext import Encoder, load
from seqmill.tokenizers_ext.artifact import TOKENIZER_JSON
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.tokenizer_json import without_template_start

if TYPE_CHECKING:
    from seqmill.models import TrainConfig
    from seqmill.models.samples import SampleConfig
    from seqmill.models.training.runlog import Record
    from seqmill.pipeline.config import GenerateConfig  # whose stage of traps imports this module

SAMPLES = "samples.json"
BYTE_MODEL = "byte-model.arrow"
_EXCERPTS_PER_ROW = 16


def read_train_config(table: Mapping[str, Any], where: str = "train") -> "TrainConfig":
    """The `[train]` table as a checked configuration.

    Args:
        where: the table's name, for messages; "" for a whole file.

    Raises:
        UserError: an unknown key, an impossible value, or no torch on this machine.
    """
    try:
        from seqmill.models import TrainConfig
    except ImportError as error:
        raise UserError(f"training needs torch ({error}): pip install 'seqmill[train]', or remove [train]") from error
    return build(TrainConfig, table, where)


@dataclass(frozen=True)
class Training:
    """A training run of its own, outside of a pipeline's."""

    packed: Path  # folder of packed rows
    out: Path
    config: "TrainConfig"


def read_training(source: Path, flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> Training:
    """What `seqmill train SOURCE` is asked to do.

    Args:
        source: a packed folder; or a TOML file with `packed`, `out` and fields of TrainConfig. As in the file of a run,
            relative paths are relative to the working directory.
        flags: keys of such a file and their values, which win over the file's.
        overrides: "key=value" strings, which win over both (`config.set_value`).

    Raises:
        UserError: the file is missing or no TOML, a key or value is not accepted, or a folder is not named.
    """
    from seqmill.pipeline.config import read_toml, set_value  # here: its stage of traps imports this module

    is_file = source.is_file() or source.suffix == ".toml"
    table = {**(read_toml(source) if is_file else {"packed": str(source)}), **flags}
    for override in overrides:
        set_value(table, override)
    folders = {}
    for name, way_out in (("packed", "name a packed folder there"), ("out", "give --out")):
        folder = table.pop(name, None)
        if not isinstance(folder, str):
            found = f"{name} = {folder!r} is no folder's name" if folder is not None else f"there is no {name!r}"
            raise UserError(f"{f'{source}: ' if is_file else ''}{found}; {way_out}")
        folders[name] = Path(folder)
    return Training(**folders, config=read_train_config(table, where=""))


def train_model(
    packed: Path, config: "TrainConfig", out: Path, progress: Progress, executor: Executor | None = None
) -> dict[str, Any]:
    """Train on a packed folder, or go on where an earlier run stopped; returns the result as JSON.

    A Ray executor has as many ranks train together as it has workers. Any other leaves it to this process, and to those
    that torchrun has started beside it.
    """
    reporter = TrainingReporter(progress)
    progress.start("train", config.steps)
    try:
        if isinstance(executor, RayExecutor):
            from seqmill.models.training.ray_train import train_on_ray

            executor.connect()
            result = train_on_ray(packed, out, config, executor.workers, reporter.show)
        else:
            from seqmill.models import train

            result = train(packed, out, config, progress=reporter.show)
        reporter.skip_to(result.steps)
    finally:
        progress.finish()
    return asdict(result)


class TrainingReporter:
    """Turns the records of a run into progress: updates done, and in words the last loss, rate and evaluation."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0  # updates that the progress knows of
        self._evaluation = ""

    def show(self, record: "Record") -> None:
        """Show a record as it is logged."""
        from seqmill.models.training.runlog import EvaluationRecord, StepRecord

        if isinstance(record, EvaluationRecord):
            if record.bits_per_byte is not None:
                self._evaluation = f", {record.set} {record.bits_per_byte:.3f} bits per byte at {record.step}"
        elif isinstance(record, StepRecord):
            self.skip_to(record.step - 1)
            rate = "" if record.tokens_per_second is None else f", {record.tokens_per_second:,.0f} tokens/s"
            mfu = "" if record.mfu is None else f", {record.mfu:.1%} MFU"
            self._progress.tell(f"loss {record.loss:.3f}{rate}{mfu}{self._evaluation}")
            self._progress.advance()
            self._done = record.step

    def skip_to(self, step: int) -> None:
        """An earlier run did the updates up to `step`, but for those that were shown."""
        if step > self._done:
            self._progress.skip(step - self._done)
            self._done = step


@dataclass(frozen=True)
class ByteModelConfig:
    """How to train what predicts the bytes of a window coder."""

    model: str = "bytes-0.8m"  # a preset: bytes-0.2m, bytes-0.8m or bytes-3m
    steps: int = 4000  # updates
    batch_tokens: int = 4160  # of one update; about as many excerpts are drawn as all updates need
    excerpt_bytes: int = 64  # the model sees one byte less, and the start
    learning_rate: float | None = None  # peak; None: the preset's own
    seed: int = 0  # of the excerpts, the first weights and the order
    device: str = "auto"  # auto, cpu or cuda

    def __post_init__(self) -> None:
        if not self.model.startswith("bytes-"):
            raise UserError(f"model = {self.model!r}: a window coder needs a preset of bytes, such as bytes-0.8m")
        if min(self.steps, self.batch_tokens) < 1:
            raise UserError(f"steps = {self.steps}, batch_tokens = {self.batch_tokens}: must be positive")
        ExcerptConfig(self.excerpt_bytes, seed=self.seed)


def train_byte_model(
    documents: Path, config: ByteModelConfig, out: Path, executor: Executor, progress: Progress
) -> Path:
    """Train a decoder on stretches of bytes that begin anywhere, and write it as integers; resumes where it stopped.

        out/excerpts, out/packed    what it is trained on
        out/run                     logs and checkpoints
        out/byte-model.arrow        for seqmill.compress.IntegerTransformer.open

    Returns:
        The last of these.

    Raises:
        UserError: the documents have no text, or torch is not on this machine.
    """
    width = config.excerpt_bytes + 1
    drawn = config.steps * config.batch_tokens * config.excerpt_bytes // width
    settings = ExcerptConfig(config.excerpt_bytes, drawn, config.seed)
    training = read_train_config(
        {
            "model": config.model,
            "steps": config.steps,
            "batch_tokens": config.batch_tokens,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            "device": config.device,
        }
    )
    from seqmill.models.integer_export import export_integers

    draw_excerpts(documents, settings, out / "excerpts", executor, progress)
    pack(out / "excerpts", PackConfig(seq_len=_EXCERPTS_PER_ROW * width), out / "packed", executor, progress)
    train_model(out / "packed", training, out / "run", progress)
    export_integers(out / "run", out / BYTE_MODEL, config.excerpt_bytes)
    return out / BYTE_MODEL


def generate_samples(checkpoint: Path, config: "GenerateConfig", out: Path) -> list[dict[str, Any]]:
    """Continue the configured prompts by packed prefill; writes and returns [{"prompt", "continuation"}]."""
    samples = continue_texts(checkpoint, config)
    write_json(out / SAMPLES, samples)
    return samples


def sample_config(config: "GenerateConfig") -> "SampleConfig":
    """How prompts are continued, checked.

    Raises:
        UserError: a setting is impossible, or excludes another.
    """
    from seqmill.models.samples import SampleConfig

    return SampleConfig(**{each.name: getattr(config, each.name) for each in fields(SampleConfig)})


def continue_texts(checkpoint: Path, config: "GenerateConfig") -> list[dict[str, Any]]:
    """Continue prompts with the model and tokenizer of a checkpoint.

    Returns:
        {"prompt", "continuation", "finish", "error"} of every sample; those of a prompt follow one another.

    Raises:
        UserError: the checkpoint carries no tokenizer, a setting is impossible, or no prompt can be continued.
    """
    from seqmill import models
    from seqmill.models.samples import sample_texts
    from seqmill.models.training.job import choose_device

    sampling = sample_config(config)
    encoder = load(tokenizer_of(checkpoint))
    model = models.load(checkpoint, choose_device(config.device))
    samples = sample_texts(model, encoder, config.prompts, sampling, start_id(checkpoint, encoder))
    failed = [sample for sample in samples if sample.error is not None]
    if len(failed) == len(samples):
        raise UserError(failed[0].error or "")
    return [asdict(sample) for sample in samples]


def start_id(checkpoint: Path, encoder: Encoder) -> int | None:
    """The id that stood before every text that a model was trained on: what the template of the tokenizer says for a
    model of the HF hub, and none for one that was trained here.

    Raises:
        UserError: the template puts several there.
    """
    from seqmill.models.huggingface import is_huggingface

    return encoder.start_id if isinstance(encoder, SubwordEncoder) and is_huggingface(checkpoint) else None


def read_prompts(path: Path) -> tuple[str, ...]:
    """The column "text" of an Arrow or Parquet file.

    Raises:
        UserError: it cannot be read, or has no such column of texts.
    """
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=["text"])
        else:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
        column = table["text"].cast(pa.large_string())
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f'{path}: prompts are a column "text" of strings, and it cannot be read ({error})') from error
    return tuple(text or "" for text in column.to_pylist())


def write_samples(samples: Sequence[dict[str, Any]], path: Path) -> None:
    """One row a sample, as `continue_texts` gives them, as an Arrow stream."""
    schema = pa.schema([(name, pa.large_string()) for name in ("prompt", "continuation", "finish", "error")])
    with atomic_path(path) as temporary, pa.ipc.new_stream(temporary, schema) as writer:
        writer.write_table(pa.Table.from_pylist(list(samples), schema))


def export_model(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Write a checkpoint as `AutoModelForCausalLM` and, where its tokenizer has that form, `AutoTokenizer` read it.

    A template that puts an id before texts is left out of the tokenizer, as the model was trained without that id.

    Returns:
        "family" and "parameters" of the model, and "tokenizer": the file written, or None.

    Raises:
        UserError: no checkpoint is there, `out` is a folder of training, or torch is not on this machine.
    """
    _require_no_training(out)
    try:
        from seqmill import models
        from seqmill.models.huggingface import config_to_huggingface, export_huggingface
    except ImportError as error:
        raise UserError(f"models need torch ({error}): pip install 'seqmill[train]'") from error
    model = models.load(checkpoint)
    export_huggingface(model, out)
    tokenizer = tokenizer_of(checkpoint) / TOKENIZER_JSON
    if tokenizer.is_file():
        with atomic_path(out / TOKENIZER_JSON) as temporary:
            temporary.write_bytes(without_template_start(tokenizer.read_bytes()))
    return {
        "family": config_to_huggingface(model.config, "float32")["model_type"],
        "parameters": model.config.parameters,
        "tokenizer": str(out / TOKENIZER_JSON) if tokenizer.is_file() else None,
        "out": str(out),
    }


def import_model(file: Path, out: Path) -> dict[str, Any]:
    """Write the model and tokenizer of a GGUF file as a folder that `generate`, `score` and transformers read.

    Returns:
        As `export_model`.

    Raises:
        UserError: see `seqmill.models.gguf.import_gguf`; or `out` is a folder of training, or torch is not there.
    """
    _require_no_training(out)
    try:
        from seqmill.models.gguf import import_gguf
    except ImportError as error:
        raise UserError(f"models need torch ({error}): pip install 'seqmill[train]'") from error
    config = import_gguf(file, out)
    return {
        "family": "qwen3" if config.qk_norm else "llama",
        "parameters": config.parameters,
        "tokenizer": str(out / TOKENIZER_JSON),
        "out": str(out),
    }


def _require_no_training(out: Path) -> None:
    if (out / MANIFEST).exists() or (out / "checkpoints").exists():
        raise UserError(f"{out} is a training folder or a checkpoint, whose files would be lost; choose another --out")


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint as functions of token ids, for steps that sample or judge texts."""

    encoder: Encoder  # the tokenizer it was trained with
    fingerprint: str  # of its weights
    sample: Callable[[Sequence[Sequence[int]], int, float, int], list[Sequence[int]]]
    # (prompts, most new tokens, temperature, seed) -> continuations, up to the end of the document
    log_probabilities: Callable[[Sequence[Sequence[int]]], list[np.ndarray]]
    # sequences of n tokens -> float32[n - 1] each: natural logarithms for all tokens but the first


def open_language_model(checkpoint: Path, device: str = "cpu") -> LanguageModel:
    """The model and tokenizer of a training folder, or of one of its checkpoints.

    Args:
        device: "cpu" or "cuda".

    Raises:
        UserError: no checkpoint is there, it carries no tokenizer, or torch or the device is not on this machine.
    """
    try:
        from seqmill import models
        from seqmill.models.checkpoint import weight_files
    except ImportError as error:
        raise UserError(f"models need torch ({error}): pip install 'seqmill[train]'") from error
    encoder = load(tokenizer_of(checkpoint))
    model = models.load(checkpoint, device)
    fingerprint = "".join(hash_file(path) for path in weight_files(checkpoint))
    stop = [encoder.special_ids["eos"]] if "eos" in encoder.special_ids else []
    start = [first] if (first := start_id(checkpoint, encoder)) is not None else []

    def sample(prompts: Sequence[Sequence[int]], most: int, temperature: float, seed: int) -> list[Sequence[int]]:
        begun = [_begun(start, prompt) for prompt in prompts]
        written = models.generate(model, begun, most, temperature=temperature, seed=seed, stop_ids=stop)
        for sequence in written:
            if sequence.error is not None:
                raise UserError(sequence.error)
        return [sequence.tokens for sequence in written]

    def log_probabilities(sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        begun = [_begun(start, ids) for ids in sequences]
        scores = models.score(model, begun)
        return [found[len(found) + 1 - len(ids) :] for found, ids in zip(scores, sequences, strict=True)]

    return LanguageModel(encoder, fingerprint, sample, log_probabilities)


def _begun(start: list[int], ids: Sequence[int]) -> list[int]:
    """Ids behind the one that stands before every text, which may be there already."""
    return [*ids] if start and list(ids[:1]) == start else [*start, *ids]


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint and its tokenizer as payloads name them: where they lie, and what identifies them."""

    checkpoint: str  # the folder of the weights themselves, whatever checkpoint of a run becomes the newest later
    fingerprint: str  # of weights and shape
    tokenizer: str
    tokenizer_fingerprint: str
    start: int | None  # an id that stands before every text


@dataclass(frozen=True)
class Scorer:
    """A checkpoint as a function of columns of ids."""

    encoder: Encoder  # the tokenizer it was trained with
    dim: int  # numbers of an embedding
    read: Callable[[pa.Array, str | None, int, Callable[[int], str]], pa.RecordBatch]
    # (ids, pooling, most tokens of a pass, name of a row) -> the columns of models.inference.columns.read_column


def find_model(checkpoint: Path) -> ModelFiles:
    """The files of a training folder's newest checkpoint, of one checkpoint, or of a folder of the HF hub.

    Raises:
        UserError: no whole checkpoint is there, it carries no tokenizer, or torch is not on this machine.
    """
    try:
        from seqmill.models.checkpoint import CONFIG, weight_files
    except ImportError as error:
        raise UserError(f"models need torch ({error}): pip install 'seqmill[train]'") from error
    checkpoint = checkpoint.absolute()
    weights = weight_files(checkpoint)
    folder = weights[0].parent
    for path in weights:
        if not path.is_file():
            raise UserError(f"there is no {path}; weights must be safetensors, download it again")
    tokenizer = tokenizer_of(checkpoint)
    identity = fingerprint({path.name: hash_file(path) for path in (*weights, folder / CONFIG)})
    encoder = load(tokenizer)
    return ModelFiles(str(folder), identity, str(tokenizer), encoder.fingerprint, start_id(folder, encoder))


@lru_cache(maxsize=1)  # a worker's units share one model, which may fill its memory
def open_scorer(files: ModelFiles, device: str, dtype: str, threads: int) -> Scorer:
    """Load a model and its tokenizer, or give those that this process loaded last.

    Args:
        threads: that it computes with, on a processor; the last bits of a matrix product depend on it.

    Raises:
        UserError: they cannot be read, or the device is not on this machine.
    """
    import torch

    from seqmill import models
    from seqmill.models.inference.columns import read_column

    model = models.load(files.checkpoint, device, dtype)

    def read(ids: pa.Array, pooling: str | None, most_tokens: int, name_of: Callable[[int], str]) -> pa.RecordBatch:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return read_column(model, ids, pooling, most_tokens, name_of, files.start)
        finally:
            torch.set_num_threads(before)

    return Scorer(load(files.tokenizer), model.config.dim, read)


def device_for(asked: str, executor: str) -> str:
    """ "cpu" or "cuda": for "auto" what torch sees, but tasks of Ray hold no GPU.

    Raises:
        UserError: CUDA is asked for and not there, or torch is not on this machine.
    """
    try:
        from seqmill.models.training.job import choose_device
    except ImportError as error:
        raise UserError(f"models need torch ({error}): pip install 'seqmill[train]'") from error
    return choose_device("cpu" if asked == "auto" and executor == "ray" else asked)


def tokenizer_of(checkpoint: Path) -> Path:
    """The tokenizer that belongs to a training folder, to one of its checkpoints, or to a folder of the HF hub."""
    from seqmill.models import checkpoint as checkpoints

    found = checkpoints.tokenizer_of(checkpoint)
    if found is not None:
        return found
    raise UserError(f"{checkpoint} carries no tokenizer; copy the one its data was made with to {checkpoint}/tokenizer")
