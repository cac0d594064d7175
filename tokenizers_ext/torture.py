"""Texts on which tokenizers differ, for comparing one engine with another at load."""

from itertools import islice

from seqmill.tokenizers_ext.tokenizer_json import Description, vocabulary

# Scripts, white space, controls, joiners, digits and things that look like special tokens: where encoders differ.
TORTURE_SAMPLE = (
    "",
    " ",
    "Don't  stop\tnow\r\n\n\nplease!!  ",
    "naïve café Ünïcödé Ελληνικά Русский עברית العربية हिन्दी ไทย 日本語 中文 한국어",
    "e\u0301 \u200b\u200d\ufeff \u00a0\u2028\u3000 👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈 🇩🇪",
    "0123456789 3.14159 1,000,000 0x1F 1e-9 ½ ² Ⅷ ٣",
    "for (i=0;i<n;++i) { x[i] ^= ~y[i] << 3; } // ok_then __init__ $HOME `ls` \\n",
    "<|endoftext|> <s></s> [CLS] <pad> <|im_start|>system <0x41>",
    "\x00\x01\x7f\x1b[0m",
    "^" * 300 + "a" * 300 + "ab" * 150 + " " * 70,
    "I'Ll'S 'ſ 'Ve'RE'm'D ’s ﬁ İı ẞß Σσς ŉ ǅ K",  # contractions and letters whose case folds in odd ways
    "a\x85b\u2029c\u1680d\u180ee\u2009f\u202fg\x0bh\x0ci\x1cj\x1fk \r\r\n\n \n\t",  # white space or like it
    "\u1100\u1161\u11a8 각 q\u0323\u0307 q\u0307\u0323 Å ﷺ \U0001d400 \ud7b0 ͏ \u0344",  # what normalisation reorders
    "▁ ▁▁a ▁b Ġc Ċ",  # the stand-ins that vocabularies write for spaces and line breaks
)
FROM_VOCABULARY = 512  # tokens that the sample takes as texts
FROM_ADDED = 64  # added tokens that it puts between words


def torture_sample(description: Description) -> list[str]:
    """Texts for one tokenizer: the general ones, then some of its tokens as they are written, then added tokens."""
    tokens = [token for token, _ in vocabulary(description)]
    step = max(1, len(tokens) // FROM_VOCABULARY)
    written = [token.replace("Ġ", " ").replace("▁", " ") for token in tokens[::step]]
    added = [token["content"] for token in islice(description["added_tokens"], FROM_ADDED)]
    between = [f"a{token}b {token} c  {token}\n{token}{token}.{token}1{token.upper()}" for token in added]
    return [*TORTURE_SAMPLE, *written, "".join(written), *between]
