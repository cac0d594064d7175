"""The vocabulary of a GGUF file as a Hugging Face `tokenizer.json`, so that everything behind is one path.

    tokenizer.ggml.model         "gpt2": byte-level BPE, the only kind read here
    tokenizer.ggml.pre           the name of the rule that cuts text, such as "smollm"
    tokenizer.ggml.tokens        by id, and of each its token_type
    tokenizer.ggml.merges        "left right", in their order

The rules themselves are published facts of the models that they are named after, known here by name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.patterns import CL100K_PATTERN, GPT2_PATTERN, O200K_PATTERN, QWEN2_PATTERN

MODEL, RULE, TOKENS, TYPES, MERGES = (
    f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "merges")
)
ADDS_START = "tokenizer.ggml.add_bos_token"
ROLES = {role: f"tokenizer.ggml.{key}_token_id" for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}


class TokenType(IntEnum):
    """tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Rule:
    """How text is cut before merging."""

    pattern: str  # its matches are merged separately
    cuts_digits: bool = False  # before that, every digit is cut off
    takes_whole: bool = False  # a match that is a token becomes it, whatever the merges say
    adds_start: bool = False  # texts begin with the id in the role bos, where the file does not say otherwise


_LLAMA3 = Rule(CL100K_PATTERN, takes_whole=True, adds_start=True)
RULES: Mapping[str, Rule] = {
    "gpt-2": Rule(GPT2_PATTERN),
    "smollm": Rule(GPT2_PATTERN, cuts_digits=True),
    "starcoder": Rule(GPT2_PATTERN, cuts_digits=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": Rule(QWEN2_PATTERN),
    "deepseek-r1-qwen": Rule(QWEN2_PATTERN),
    "gpt-4o": Rule(O200K_PATTERN),
}


def convert_vocabulary(metadata: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """A `tokenizer.json` with the ids of the model, and the ids of the roles bos, eos and pad where they are named.

    Control tokens become special tokens, user-defined ones become added tokens; unused ones are left out.

    Raises:
        UserError: there is no vocabulary, it is of another kind, its rule is not known here, or it is damaged.
    """
    kind, name = metadata.get(MODEL), metadata.get(RULE, "default")
    if kind != "gpt2":
        raise UserError(f"{MODEL} = {kind!r}: only byte-level BPE ('gpt2') is read here; take the model's safetensors")
    if name not in RULES:
        raise UserError(
            f"{RULE} = {name!r}: how that cuts text is not known here ({', '.join(RULES)} are), and ids would differ "
            "from those of the training; take the model's safetensors and tokenizer.json"
        )
    tokens, merges = metadata.get(TOKENS), metadata.get(MERGES)
    if not tokens or merges is None:
        raise UserError(f"there is no {MERGES if tokens else TOKENS}, so no text can be encoded; download it again")
    types = metadata.get(TYPES) or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{len(tokens)} {TOKENS} have {len(types)} {TYPES}: the file is damaged; download it again")
    contents = _tokenizer(tokens, types, merges, RULES[name]).to_str()
    roles = _roles(metadata, len(tokens))
    if metadata.get(ADDS_START, RULES[name].adds_start and "bos" in roles):
        if "bos" not in roles:
            raise UserError(f"{ADDS_START} is true, but {ROLES['bos']} is missing; download the file again")
        template = _template(tokens[roles["bos"]], roles["bos"])
        contents = json.dumps({**json.loads(contents), "post_processor": template}, ensure_ascii=False)
    return contents.encode(), roles


def _template(start: str, id_: int) -> dict[str, Any]:
    """A post-processor that puts a token before every text."""

    def begun(text: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": text, "type_id": 0}}]

    return {
        "type": "TemplateProcessing",
        "single": begun("A"),
        "pair": [*begun("A"), *begun("B")],
        "special_tokens": {start: {"id": start, "ids": [id_], "tokens": [start]}},
    }


def _tokenizer(tokens: list[str], types: list[int], merges: list[str], rule: Rule) -> Tokenizer:
    vocab = {token: id_ for id_, token in enumerate(tokens) if types[id_] != TokenType.UNUSED}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule.takes_whole))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{MERGES} do not fit {TOKENS} ({error}): the file is damaged; download it again") from error
    tokenizer.pre_tokenizer = _pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    of_type = {kind: [token for token, found in zip(tokens, types, strict=True) if found == kind] for kind in TokenType}
    tokenizer.add_special_tokens([_added(token) for token in of_type[TokenType.CONTROL] + of_type[TokenType.UNKNOWN]])
    tokenizer.add_tokens([_added(token) for token in of_type[TokenType.USER_DEFINED]])
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)


def _pre_tokenizer(rule: Rule) -> pre_tokenizers.PreTokenizer:
    """GPT-2's pattern is built into the ByteLevel pre-tokenizer, where fast engines look for it."""
    own = rule.pattern == GPT2_PATTERN
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule.cuts_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if not own:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def _roles(metadata: Mapping[str, Any], tokens: int) -> dict[str, int]:
    ids = {role: int(metadata[key]) for role, key in ROLES.items() if key in metadata}
    for role, id_ in ids.items():
        if id_ >= tokens:
            raise UserError(f"{ROLES[role]} = {id_}, but there are {tokens} tokens; the file is damaged")
    return ids
