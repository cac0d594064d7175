"""The configuration of a whole run: one TOML file, overridden by `--set table.key=value`."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.executors import EXECUTORS
from seqmill.pipeline.filters.config import FilterConfig, with_preset
from seqmill.pipeline.ingest import IngestConfig
from seqmill.pipeline.mixing.config import MixConfig
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.pack import PackConfig
from seqmill.pipeline.settings import build
from seqmill.pipeline.substrings.config import SubstringConfig
from seqmill.pipeline.tokenize import TokenizeConfig
from seqmill.pipeline.train_tokenizer import TokenizerConfig
from seqmill.pipeline.traps.config import InjectConfig


@dataclass(frozen=True)
class ExecutionConfig:
    """`[execution]`: where the work runs. Nothing here changes a byte of the output."""

    executor: str = "local"  # "local": processes on this machine; "ray": tasks on a Ray cluster
    workers: int | None = None  # units in progress at a time; default: the cores of this machine
    address: str | None = None  # of a Ray cluster; default: the cluster this job runs on, or an embedded one

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"execution.executor = {self.executor!r}: choose one of {', '.join(EXECUTORS)}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"execution.workers = {self.workers}: at least 1 is needed")


@dataclass(frozen=True)
class GenerateConfig:
    """`[generate]`: continuations to sample from the trained model, by packed prefill."""

    prompts: tuple[str, ...]
    max_new_tokens: int = 64
    temperature: float = 0.8  # 0 takes the most likely token every time
    top_k: int | None = 50
    seed: int = 0
    top_p: float | None = None  # draw among the fewest likeliest tokens that have this much probability together
    min_p: float | None = None  # draw among tokens that have this part of the likeliest one's probability or more
    samples: int = 1  # continuations of every prompt
    stop: tuple[str, ...] = ()  # texts that end a continuation and are not part of it
    draft: str | None = None  # copy, recycle or suffix: propose tokens and verify several in one pass
    beams: int | None = None  # the likeliest `samples` continuations of a search with so many, instead of draws
    beam_groups: int = 1  # into which they are divided
    diversity: float = 0.0  # what a token costs for every time that an earlier group chose it, in nats
    device: str = "auto"  # auto (CUDA where torch sees it), cpu, cuda

    def __post_init__(self) -> None:
        if not self.prompts or not all(self.prompts):
            raise UserError("generate.prompts: at least one prompt is needed, and none may be empty")
        if self.max_new_tokens < 1:
            raise UserError(f"generate.max_new_tokens = {self.max_new_tokens}: at least 1 is needed")
        if self.temperature < 0:
            raise UserError(f"generate.temperature = {self.temperature}: 0 (greedy) or more is needed")


@dataclass(frozen=True, kw_only=True)
class TrapsConfig(InjectConfig):
    """`[traps]`: copyright traps to inject, made beforehand."""

    file: str  # the Parquet file that `seqmill traps make` wrote

    def injection(self) -> InjectConfig:
        """What decides how they are injected: all but where they lie."""
        return InjectConfig(**{entry.name: getattr(self, entry.name) for entry in fields(InjectConfig)})


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Relative paths are relative to the working directory. A stage whose table is None is left out."""

    out: str  # folder of the run
    ingest: IngestConfig
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    filter: FilterConfig | None = None
    dedup: DedupConfig = field(default_factory=DedupConfig)
    substrings: SubstringConfig | None = None
    traps: TrapsConfig | None = None
    mix: MixConfig | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    train: Mapping[str, Any] | None = None  # fields of seqmill.models.TrainConfig; no table, no training
    generate: GenerateConfig | None = None  # needs [train]
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        if self.generate and self.train is None:
            raise UserError("[generate] needs a [train] table: there is no model to generate from")
        if self.traps and self.traps.fuzzy and not self.tokenizer.path:
            raise UserError(
                f"traps.fuzzy = {self.traps.fuzzy} replaces tokens, but a run injects traps before it trains a "
                "tokenizer; name one in tokenizer.path, or set traps.fuzzy = 0"
            )
        if self.tokenize.patching and not self.tokenizer.path and self.tokenizer.kind != "byte":
            raise UserError(
                f"[tokenize.patching] cuts bytes into patches, but tokenizer.kind = {self.tokenizer.kind!r}; set "
                "tokenizer.kind = 'byte', or leave the table out"
            )
        if self.mix and self.mix.unit == "tokens":
            raise UserError(
                "mix.unit = 'tokens': a run mixes documents, which have none yet; mix by bytes or documents"
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: a TOML file.
        overrides: "table.key=value" strings, the value in TOML syntax (a bare word counts as a string); later ones win.

    Raises:
        UserError: the file is missing or no TOML, or a key or value is not accepted.
    """
    table = read_toml(Path(path))
    for override in overrides:
        set_value(table, override)
    if isinstance(table.get("filter"), dict):
        table["filter"] = with_preset(table["filter"])
    return build(RunConfig, table)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables and values of a configuration file.

    Raises:
        UserError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no configuration file {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error


def set_value(table: dict[str, Any], override: str) -> None:
    """Set one value in place: "pack.seq_len=4096" sets table["pack"]["seq_len"] to 4096."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write it as table.key=value, for example pack.seq_len=4096")
    *tables, last = key.strip().split(".")
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override!r}: {name!r} is a value, not a table")
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = text


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the output's bytes, as JSON: all but the place and the memory that it takes."""
    settings = asdict(config)
    del settings["execution"], settings["out"], settings["dedup"]["memory_mb"]
    return settings
