"""Generation as one function of prompts."""

from collections.abc import Callable, Collection, Sequence

from seqmill.errors import UserError
from seqmill.models.inference.engine import Engine
from seqmill.models.inference.requests import GeneratedSequence, Request, check_request
from seqmill.models.inference.sampling import Sampling
from seqmill.models.inference.settings import EngineSettings
from seqmill.models.inference.stopping import Decode
from seqmill.models.transformer import Model


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    seed: int = 0,
    *,
    min_p: float | None = None,
    samples: int = 1,
    stop_texts: Sequence[str] = (),
    decode: Decode | None = None,
    decodes_parts: bool = False,
    first_ids: Sequence[range] | None = None,
    settings: EngineSettings | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[GeneratedSequence]:
    """Continue every prompt, in the order given; with several samples, those of a prompt one after the other.

    A request's tokens depend on its prompt, `seed` and its place in `prompts` alone, not on the other prompts (up to
    the rounding of matrix kernels, which may differ between batch sizes). A prompt that cannot be continued (empty, an
    id outside the vocabulary, more than the cache holds) has `finish` "error" and says why; the others go on.

    Args:
        max_new_tokens: the length at which a continuation ends if no stop token comes first.
        temperature: 0 takes the likeliest token; otherwise see `Sampling`, also for `top_k`, `top_p` and `min_p`.
        stop_ids: tokens that end a continuation; they are not part of it.
        stop_texts: texts that end a continuation; its `text` is what stands before.
        decode: lists of ids -> their bytes, for `stop_texts`; `decodes_parts` as of Engine.
        first_ids: for each prompt the ids that its first new token is one of, for prompts whose end was taken back
            (seqmill.compress.healing); not empty.
        settings: of the engine; None: a cache that is as large as the prompts need.
        on_token: is told (place of the continuation in the result, token) of every new token as it comes.

    Raises:
        UserError: a setting is impossible.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    firsts: Sequence[range | None] = first_ids or [None] * len(prompts)
    requests = [
        Request(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            samples=samples,
            seed=seed,
            place=place,
            stop_ids=frozenset(stop_ids),
            stop_texts=tuple(stop_texts),
            first_ids=first,
        )
        for place, (prompt, first) in enumerate(zip(prompts, firsts, strict=True))
    ]
    check_request(Request(prompt=[0], max_new_tokens=max_new_tokens, samples=samples, seed=seed), 1)
    engine = Engine.for_requests(model, requests, settings, decode=decode, decodes_parts=decodes_parts)
    numbers, found = _submit(engine, requests)
    while engine.busy:
        for event in engine.step():
            if on_token is not None and event.token is not None:
                on_token(numbers[event.request] * samples + event.sample, event.token)
    for number, place in numbers.items():
        found[place] = engine.results(number) or []
    return [sequence for each in found for sequence in each]


def _submit(engine: Engine, requests: Sequence[Request]) -> tuple[dict[int, int], list[list[GeneratedSequence]]]:
    """(number -> place of each request that runs, what came of those that do not)."""
    numbers: dict[int, int] = {}
    found: list[list[GeneratedSequence]] = []
    for place, request in enumerate(requests):
        found.append([])
        try:
            numbers[engine.submit(request)] = place
        except UserError as error:
            failed = GeneratedSequence((), "error", len(request.prompt), error=f"prompt {place}: {error}")
            found[place] = [failed] * request.samples
    return numbers, found
