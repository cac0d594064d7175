"""Reading a Hugging Face `tokenizer.json`: what is wrong with one, and how to make it take documents as data."""

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from typing import Any

import orjson
from tokenizers import Tokenizer

from seqmill.errors import UserError

MODEL_TYPES = ("BPE", "Unigram", "WordPiece", "WordLevel")
_WITH_CLS = ("BertProcessing", "RobertaProcessing")  # templates without a text of their own
HIDDEN = "\ufdd0"  # a noncharacter, between the secret and the name of a hidden token

Description = dict[str, Any]


def parse_tokenizer_json(contents: bytes) -> Description:
    """The description of a tokenizer, checked.

    Raises:
        UserError: no JSON, no tokenizer, an unknown model type, an id that two tokens share, or merges of tokens that
            are not in the vocabulary.
    """
    if not contents.strip():
        raise UserError("not a tokenizer.json: the file is empty")
    try:
        description = orjson.loads(contents)
    except orjson.JSONDecodeError as error:
        raise UserError(f"not a tokenizer.json: no valid JSON ({error}); fetch the file again") from error
    model = description.get("model") if isinstance(description, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError('not a tokenizer.json: it has no "model" with a "vocab"')
    description.setdefault("added_tokens", [])
    model.setdefault("type", _guess_type(model))
    if model["type"] not in MODEL_TYPES:
        raise UserError(f"unknown tokenizer model type {model['type']!r}; known are {', '.join(MODEL_TYPES)}")
    _check_ids(description)
    _check_merges(model)
    return description


def vocabulary(description: Description) -> Iterator[tuple[str, int]]:
    """Every token of the model and its id, added tokens left out."""
    vocab = description["model"]["vocab"]
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:
        yield from ((piece, id_) for id_, (piece, _) in enumerate(vocab))


def vocabulary_size(description: Description) -> int:
    """One more than the largest id, added tokens included."""
    added = (token["id"] for token in description["added_tokens"])
    return 1 + max([*(id_ for _, id_ in vocabulary(description)), *added])


def with_special_tokens_hidden(description: Description, secret: str) -> Description:
    """The same tokenizer, in which no text can spell a special token.

    `tokenizers` leaves special tokens alone when told so, but some models find them in their vocabulary all the same:
    a Unigram or WordLevel model takes "</s>" in a text for the id. So the names are replaced by ones that no document
    knows. The unknown token keeps its name: text that spells it is unknown.
    """
    model = description["model"]
    special = {token["content"] for token in description["added_tokens"] if token["special"]}
    names = {name: secret + HIDDEN + name for name in special - {model.get("unk_token")}}
    hidden = copy.copy(description)
    hidden["post_processor"] = None  # its templates name special tokens
    hidden["model"] = {**model, "vocab": _renamed(model["vocab"], names)}
    hidden["added_tokens"] = [
        {**token, "content": names.get(token["content"], token["content"])} for token in description["added_tokens"]
    ]
    return hidden


def reference_tokenizer(description: Description, parse_special: bool) -> Tokenizer:
    """The tokenizer in `tokenizers`, without truncation, padding and templates.

    Raises:
        UserError: `tokenizers` cannot read it, or gives an added token another id than the file.
    """
    try:
        tokenizer = Tokenizer.from_str(orjson.dumps(description).decode())
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"not a tokenizer.json that `tokenizers` can read: {error}") from error
    for token in description["added_tokens"]:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            name = token["content"].rpartition(HIDDEN)[2]
            raise UserError(
                f"added token {name!r} has id {token['id']} in the tokenizer.json, but `tokenizers` gives it {found}: "
                "number added tokens from the end of the vocabulary on, or list them in it"
            )
    tokenizer.encode_special_tokens = not parse_special
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    return tokenizer


def template_start(description: Description) -> int | None:
    """The id that the tokenizer's own template puts before a text, such as <|begin_of_text|> of Llama 3; None where it
    puts none.

    Raises:
        UserError: it puts several there.
    """
    ids = list[int]()
    for step in _processors(description):
        if step["type"] in _WITH_CLS:
            ids.append(step["cls"][1])
        elif step["type"] == "TemplateProcessing":
            for piece in takewhile(_is_special, step["single"]):
                ids += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    if len(ids) > 1:
        raise UserError(
            f"the tokenizer's template begins with the ids {ids}: a text can begin with one of its own only"
        )
    return ids[0] if ids else None


def without_template_start(contents: bytes) -> bytes:
    """A `tokenizer.json` that puts no id before a text; the same bytes where it put none there."""
    description = parse_tokenizer_json(contents)
    if template_start(description) is None:
        return contents
    kept = [step for step in _processors(description) if step["type"] not in _WITH_CLS]
    for step in kept:
        if step["type"] == "TemplateProcessing":
            step["single"] = list(dropwhile(_is_special, step["single"]))
    description["post_processor"] = {"type": "Sequence", "processors": kept} if kept else None
    return orjson.dumps(description)


def _processors(description: Description) -> list[dict[str, Any]]:
    processor = description.get("post_processor")
    if processor is None:
        return []
    steps: list[dict[str, Any]] = processor["processors"] if processor["type"] == "Sequence" else [processor]
    return steps


def _is_special(piece: dict[str, Any]) -> bool:
    return "SpecialToken" in piece


def _renamed(vocab: Any, names: dict[str, str]) -> Any:
    if isinstance(vocab, dict):
        return {names.get(token, token): id_ for token, id_ in vocab.items()}
    return [[names.get(piece, piece), score] for piece, score in vocab]


def _guess_type(model: dict[str, Any]) -> str:
    """Old files name no type; `tokenizers` tells models apart by what they hold."""
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _check_ids(description: Description) -> None:
    tokens = dict(vocabulary(description))
    size = sum(1 for _ in vocabulary(description))
    if len(tokens) < size:
        twice = Counter(token for token, _ in vocabulary(description)).most_common(1)[0][0]
        raise UserError(f"the vocabulary holds {twice!r} twice: its ids would be ambiguous")
    owners = {id_: token for token, id_ in tokens.items()}
    if len(owners) < size:
        id_, count = Counter(tokens.values()).most_common(1)[0]
        names = [token for token, other in tokens.items() if other == id_][:3]
        raise UserError(f"the vocabulary gives id {id_} to {count} tokens ({names}): text could not come back")
    for token in description["added_tokens"]:
        if owners.setdefault(token["id"], token["content"]) != token["content"]:
            raise UserError(
                f"id {token['id']} belongs to the token {owners[token['id']]!r} and to the added token "
                f"{token['content']!r}: text could not come back"
            )


def _check_merges(model: dict[str, Any]) -> None:
    if model["type"] != "BPE":
        return
    vocab, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges", []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise UserError(f"the merge {merge!r} does not name two tokens")
        left, right = pair
        missing = [token for token in (left, right, left + right.removeprefix(prefix)) if token not in vocab]
        if missing:
            raise UserError(f"the merge of {left!r} and {right!r} names {missing[0]!r}, which is not in the vocabulary")
