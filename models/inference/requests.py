"""What is asked of a model, and what came of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from seqmill.errors import UserError
from seqmill.models.inference.sampling import GREEDY, Sampling

Finish = Literal["length", "stop", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how it is continued."""

    prompt: Sequence[int]
    max_new_tokens: int  # the length at which a continuation ends if nothing else ends it
    sampling: Sampling = GREEDY
    samples: int = 1  # continuations, which share the prompt's keys and values
    seed: int = 0  # of its draws, with `place`
    place: int = 0  # tells requests of one seed apart
    stop_ids: Collection[int] = frozenset()  # tokens that end a continuation and are not part of it
    stop_texts: Sequence[str] = ()  # texts that end a continuation; the engine needs a decoder for them
    first_ids: range | None = None  # ids that the first new token is one of; not empty
    members: Sequence[range] = ()  # places of the prompt that are a set: their order does not matter (order_free)


@dataclass(frozen=True)
class GeneratedSequence:
    """What was generated for one prompt."""

    tokens: tuple[int, ...]  # new tokens, without the prompt and without the stop token
    finish: Finish  # why it ended
    prompt_tokens: int  # length of the prompt
    error: str | None = None  # why nothing could be generated, where `finish` is "error"
    text: bytes | None = None  # what stands before the stop text, where there are such texts


@dataclass
class Statistics:
    """What an engine has done."""

    steps: int = 0  # forward passes
    prompt_tokens: int = 0  # of all requests that were admitted
    reused_tokens: int = 0  # of those: whose keys and values were there already
    drafted_tokens: int = 0  # proposed by a drafter
    accepted_tokens: int = 0  # of those: that the model would have chosen too
    new_tokens: int = 0  # generated
    most_pages: list[int] = field(default_factory=list)  # of each group of layers, in use at one time


def check_request(request: Request, vocab_size: int, what: str = "prompt") -> None:
    """Whether a request can be run at all.

    Raises:
        UserError: a prompt is empty or holds an id outside the vocabulary, or a setting is impossible.
    """
    check_ids(what, request.prompt, vocab_size)
    settings = {"max_new_tokens": request.max_new_tokens, "samples": request.samples}
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"{name} = {value}: must be 1 or more")
    for name, value in {"seed": request.seed, "place": request.place}.items():
        if value < 0:
            raise UserError(f"{name} = {value}: must be 0 or more")
    if "" in request.stop_texts:
        raise UserError("stop_texts: an empty text stands before everything; leave it out")
    first = request.first_ids
    if first is not None and not (0 <= first.start < first.stop <= vocab_size):
        raise UserError(f"first_ids = {first}: must be some ids of the vocabulary, 0 .. {vocab_size - 1}")


def check_ids(what: str, sequence: Sequence[int], vocab_size: int) -> None:
    """Whether ids are those of a model.

    Raises:
        UserError: there are none, or one is outside the vocabulary.
    """
    if not len(sequence):
        raise UserError(f"{what} is empty, and there is nothing to go on from; give it at least one token")
    smallest, largest = min(sequence), max(sequence)
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise UserError(
            f"{what} holds the id {wrong}, but the model's vocabulary is 0 .. {vocab_size - 1}; encode it with the "
            "tokenizer that the model was trained with"
        )
