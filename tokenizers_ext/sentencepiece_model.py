"""sentencepiece models (`*.model`) as Hugging Face `tokenizer.json`, so that everything behind is one path.

The file is a protobuf. Its message types are declared here, as far as they are needed; protobuf itself reads it.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from seqmill.errors import UserError
from seqmill.tokenizers_ext.merges import last_merges

SPACE = "▁"  # U+2581, how pieces write a space
UNIGRAM, BPE = 1, 2  # TrainerSpec.model_type; 3 is word, 4 is char
BYTE_IN_TEXT = {"<0": "<(?=0x[0-9A-F]{2}>)", "0x": "(?<=<)0(?=x[0-9A-F]{2}>)"}  # its first characters, where to cut


class PieceType(IntEnum):
    """SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# message -> field -> (number, type, default); only what is read here
MESSAGES: dict[str, dict[str, tuple[int, str, Any]]] = {
    "SentencePiece": {"piece": (1, "string", ""), "score": (2, "float", 0), "type": (3, "int32", 1)},
    "TrainerSpec": {
        "model_type": (3, "int32", UNIGRAM),
        "treat_whitespace_as_suffix": (24, "bool", False),
        "byte_fallback": (35, "bool", False),
    },
    "NormalizerSpec": {
        "precompiled_charsmap": (2, "bytes", b""),
        "add_dummy_prefix": (3, "bool", True),
        "remove_extra_whitespaces": (4, "bool", True),
        "escape_whitespaces": (5, "bool", True),
    },
    "ModelProto": {
        "pieces": (1, "SentencePiece", None),
        "trainer_spec": (2, "TrainerSpec", None),
        "normalizer_spec": (3, "NormalizerSpec", None),
    },
}


def convert_model(contents: bytes) -> bytes:
    """A `tokenizer.json` with the ids that sentencepiece gives for this model.

    Control symbols become special tokens, user-defined symbols become added tokens. `sentencepiece` puts its dummy
    prefix in front of a document that is nothing but one user-defined symbol, `tokenizers` does not.

    Raises:
        UserError: the file is no sentencepiece model, or is of a kind that `tokenizers` cannot express.
    """
    model = _parse(contents)
    _check_kind(model)
    normalizer = _normalizer(model)
    pieces = [(piece.piece, piece.score, PieceType(piece.type)) for piece in model.pieces]
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": piece, "special": type_ != PieceType.USER_DEFINED}
            | {"normalized": type_ == PieceType.USER_DEFINED}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for id_, (piece, _, type_) in enumerate(pieces)
            if type_ not in (PieceType.NORMAL, PieceType.BYTE)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": _pre_tokenizer(pieces, model.trainer_spec),
        "post_processor": None,
        "decoder": _decoder(model),
        "model": (_unigram if model.trainer_spec.model_type == UNIGRAM else _bpe)(pieces, model.trainer_spec),
    }
    return json.dumps(description, ensure_ascii=False).encode()


@cache
def _message_class() -> Any:
    """The class of ModelProto, from `MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(name="seqmill/sentencepiece.proto", package="seqmill", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, default) in fields.items():
            field = described.field.add(name=name, number=number, label=field_type.LABEL_OPTIONAL)
            if kind in MESSAGES:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".seqmill.{kind}"
                field.label = field_type.LABEL_REPEATED if name == "pieces" else field_type.LABEL_OPTIONAL
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
                field.default_value = (
                    str(default).lower() if kind == "bool" else str(default) if kind != "bytes" else ""
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("seqmill.ModelProto"))


def _parse(contents: bytes) -> Any:
    try:
        model = _message_class().FromString(contents)
    except DecodeError as error:
        raise UserError(
            f"not a sentencepiece model, or cut short ({len(contents)} bytes): {error}; fetch the file again"
        ) from error
    if not model.pieces:
        raise UserError(
            f"the sentencepiece model ({len(contents)} bytes) holds no pieces: the file is empty or cut short"
        )
    names = [piece.piece for piece in model.pieces]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the sentencepiece model holds the piece {twice!r} twice: its ids would be ambiguous")
    return model


def _check_kind(model: Any) -> None:
    trainer, types = model.trainer_spec, {piece.type for piece in model.pieces}
    refused = {
        f"model type {trainer.model_type} (word or char)": trainer.model_type not in (UNIGRAM, BPE),
        "spaces as suffixes": trainer.treat_whitespace_as_suffix,
        "spaces that are not escaped": not model.normalizer_spec.escape_whitespaces,
        "unused pieces in BPE": trainer.model_type == BPE and PieceType.UNUSED in types,
        f"piece types beyond {max(PieceType)}": not types <= set(PieceType),
        "no unknown piece": PieceType.UNKNOWN not in types,
    }
    for what, holds in refused.items():
        if holds:
            raise UserError(
                f"a sentencepiece model with {what} cannot be expressed as tokenizer.json; use BPE or Unigram"
            )


def _normalizer(model: Any) -> dict[str, Any] | None:
    """sentencepiece's steps in its order: the table, spaces, the dummy prefix, then ▁ for each space."""
    spec = model.normalizer_spec
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        table = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if spec.remove_extra_whitespaces:
        steps.append(_replace({"Regex": rf"\A +|[ {SPACE}]+\z"}, ""))  # at the end it cannot tell them apart
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if spec.add_dummy_prefix:
        steps.append(_dummy_prefix([p.piece for p in model.pieces if p.type == PieceType.USER_DEFINED]))
    return {"type": "Sequence", "normalizers": [*steps, _replace({"String": " "}, SPACE)]}


def _dummy_prefix(symbols: Sequence[str]) -> dict[str, Any]:
    """▁ in front of the document, but not of a user-defined symbol, whose name `tokenizers` passes through here too."""
    if not symbols:
        return {"type": "Prepend", "prepend": SPACE}
    names = "|".join(re.escape(symbol) for symbol in symbols)
    return _replace({"Regex": rf"\A(?=.|\n)(?!(?:{names})\z)"}, SPACE)


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": dict(pattern), "content": content}


def _pre_tokenizer(pieces: Sequence[tuple[str, float, PieceType]], trainer: Any) -> dict[str, Any] | None:
    """Cuts that change no ids. BPE with byte fallback is left whole: fast engines know it in that form.

    In front of every ▁, where no piece reaches over one: words repeat. And inside "<0x41>", which a Unigram model of
    `tokenizers` would take for the byte, at a place that no piece reaches over.
    """
    if trainer.model_type == BPE and trainer.byte_fallback:
        return None
    normal = [piece for piece, _, type_ in pieces if type_ == PieceType.NORMAL]
    cuts: list[dict[str, str]] = []
    behaviors: list[str] = []
    if SPACE in normal and not any(SPACE in piece[1:] for piece in normal):
        cuts, behaviors = [{"String": SPACE}], ["MergedWithNext"]
    if trainer.byte_fallback:
        free = [start for start in BYTE_IN_TEXT if not any(start in piece for piece in normal)]
        cuts, behaviors = (
            [*cuts, {"Regex": BYTE_IN_TEXT[free[0] if free else "<0"]}],
            [*behaviors, "MergedWithPrevious"],
        )
    steps = [
        {"type": "Split", "pattern": cut, "behavior": behavior, "invert": False}
        for cut, behavior in zip(cuts, behaviors, strict=True)
    ]
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _decoder(model: Any) -> dict[str, Any]:
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {"type": "Sequence", "decoders": [*steps, strip] if model.normalizer_spec.add_dummy_prefix else steps}


def _unigram(pieces: Sequence[tuple[str, float, PieceType]], trainer: Any) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": next(id_ for id_, (_, _, type_) in enumerate(pieces) if type_ == PieceType.UNKNOWN),
        "vocab": [[piece, score] for piece, score, _ in pieces],
        "byte_fallback": trainer.byte_fallback,
    }


def _bpe(pieces: Sequence[tuple[str, float, PieceType]], trainer: Any) -> dict[str, Any]:
    """sentencepiece merges the neighbours that make the piece of the highest score, the leftmost among equals."""
    vocab = {piece: id_ for id_, (piece, _, _) in enumerate(pieces)}
    normal = [(piece, score) for piece, score, type_ in pieces if type_ == PieceType.NORMAL]
    ranks = {piece: rank for rank, (piece, _) in enumerate(sorted(normal, key=lambda pair: -pair[1]))}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(piece for piece, _, type_ in pieces if type_ == PieceType.UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": trainer.byte_fallback,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [[left, right] for left, right in last_merges(ranks) if left in vocab and right in vocab],
    }
