"""The packed folder, and the folders that it was made from as far as they are there."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, open_manifest
from seqmill.packing import TokenStore
from seqmill.packing.schema import KIND
from seqmill.pipeline.repeats.windows import START
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER
from seqmill.pipeline.tracing.target import readable
from seqmill.storage import read_arrow, read_json
from seqmill.tokenizers_ext import Encoder, load


@dataclass(frozen=True)
class Sources:
    """Where to look; None: beside the packed folder, or inside it, whatever has the right fingerprint."""

    tokens: Path | None = None
    documents: Path | None = None
    tokenizer: Path | None = None


class Folders:
    """The packed folder, and the ones before it as far as they are there."""

    def __init__(self, packed: Path, sources: Sources) -> None:
        self.packed = packed
        self.sources = sources
        self.manifest = open_manifest(packed, KIND)

    @cached_property
    def tokens(self) -> Path | None:
        """The folder that was packed."""
        return _former(self.packed, self.sources.tokens, "tokens", self.manifest["pack"].get("tokens"), "--tokens")

    @cached_property
    def store(self) -> TokenStore | None:
        """Its documents, by item."""
        return None if self.tokens is None else TokenStore.open(self.tokens)

    @cached_property
    def documents(self) -> "Documents | None":
        """The documents that were tokenized."""
        made_from = None if self.store is None else self.store.manifest.get("documents")
        beside = self.packed if self.tokens is None else self.tokens
        folder = _former(beside, self.sources.documents, "documents", made_from, "--documents")
        return None if folder is None else Documents(folder)

    @cached_property
    def encoder(self) -> Encoder | None:
        """The tokenizer of the rows.

        Raises:
            UserError: the given one is another.
        """
        folder = self.sources.tokenizer or self.packed / TOKENIZER_FOLDER
        if self.sources.tokenizer is None and not folder.exists():
            return None
        encoder = load(folder)
        expected = self.manifest["pack"]["tokenizer"]
        if encoder.fingerprint != expected:
            raise UserError(
                f"{folder} has the fingerprint {encoder.fingerprint[:16]}, the rows of {self.packed} were made with "
                f"{str(expected)[:16]}; give the tokenizer that made them with --tokenizer"
            )
        return encoder

    def items(self, doc_id: int) -> np.ndarray:
        """The documents of the tokens folder that have this id, int64[n]."""
        assert self.store is not None
        return np.flatnonzero(self.store.doc_ids == np.uint64(doc_id))

    def window_start(self, item: int) -> int:
        """Where the tokens of an item begin in their document: not at 0 for windows (seqmill.pipeline.repeats)."""
        assert self.tokens is not None
        assert self.store is not None
        for file in self.store.manifest["files"]:
            if item < file["rows"]:
                table = read_arrow(self.tokens / file["name"])
                return int(table[START][item].as_py()) if START in table.column_names else 0
            item -= file["rows"]
        raise IndexError(item)

    def doc_id(self, name: str) -> int:
        """The document that its user calls `name`."""
        if self.documents is None:
            raise UserError(f"id:{name} is looked up in the documents, which are not beside {self.packed}: {_GIVE}")
        return self.documents.named(name)


_GIVE = "give their folder with --documents"


def _former(folder: Path, given: Path | None, kind: str, fingerprint: str | None, flag: str) -> Path | None:
    """The folder of `kind` that `folder` was made from: the given one, or one beside it; None where there is none."""
    if given is not None:
        found = open_manifest(given, kind)["fingerprint"]
        if fingerprint is not None and found != fingerprint:
            raise UserError(
                f"{given} has the fingerprint {found}, but {folder} was made from {kind} with {fingerprint}; "
                f"give that folder with {flag}, or leave {flag} out"
            )
        return given
    for path in sorted(folder.absolute().parent.glob(f"*/{MANIFEST}")):
        if fingerprint is not None and _kind_and_fingerprint(path) == (kind, fingerprint):
            open_manifest(path.parent, kind)
            return path.parent
    return None


def _kind_and_fingerprint(manifest: Path) -> tuple[Any, Any]:
    """What a manifest says; nothing where it is broken: a neighbour may be anything."""
    try:
        said = read_json(manifest)
    except (UserError, OSError):
        return None, None
    return (said.get("kind"), said.get("fingerprint")) if isinstance(said, dict) else (None, None)


class Documents:
    """Documents by id, from mapped files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables = [read_arrow(folder / file["name"]) for file in open_manifest(folder, "documents")["files"]]

    def with_id(self, doc_id: int) -> dict[str, Any]:
        """The columns of the document with this id, or of one of its copies.

        Raises:
            UserError: there is none.
        """
        for table in self.tables:
            rows = np.flatnonzero(table["doc_id"].to_numpy() == np.uint64(doc_id))
            if len(rows):
                found: dict[str, Any] = table.slice(rows[0], 1).to_pylist()[0]
                return {"id": None, **found}
        raise UserError(
            f"{self.folder} has no document {readable(doc_id)}, which is in the rows: it is not what was tokenized; "
            "give that folder with --documents"
        )

    def named(self, name: str) -> int:
        """The doc_id of the document with this id of its user's.

        Raises:
            UserError: there is none, or there are several.
        """
        found: set[int] = set()
        for table in self.tables:
            if "id" in table.column_names:
                found.update(table["doc_id"].filter(pc.equal(table["id"], name)).to_pylist())
        if len(found) != 1:
            some = ", ".join(f"doc:{readable(one)}" for one in sorted(found)[:5])
            what = f"{len(found)} documents with the id {name!r}: {some}" if found else f"no document {name!r}"
            raise UserError(f"{self.folder} has {what}; trace one by its doc_id")
        return found.pop()
