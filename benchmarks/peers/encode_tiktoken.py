"""tiktoken: encode_ordinary_batch and decode_bytes_batch, with the vocabulary of a tokenizer.json."""

from pathlib import Path

from tiktoken import Encoding
from tokens import THREADS, Codec, main
from vocabulary import pattern, ranks, read


def ordinary_batch(tokenizer: Path) -> Codec:
    described = read(tokenizer)
    native = Encoding("benchmark", pat_str=pattern(described), mergeable_ranks=ranks(described), special_tokens={})
    return Codec(
        lambda texts: native.encode_ordinary_batch(texts, num_threads=THREADS),
        lambda encoded: encoded,
        decode=lambda lists: native.decode_bytes_batch(lists, num_threads=THREADS),
        texts=lambda decoded: decoded,
    )


if __name__ == "__main__":
    main("tiktoken", {"": ordinary_batch})
