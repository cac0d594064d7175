"""The regular expressions by which widely used tokenizers cut text into pre-tokens, as `tokenizers` reads them."""

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
# GPT-2: words, numbers and other signs, each with one space before it
GPT2_PATTERN = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
# GPT-4 and Llama 3: any one sign before a word, at most three digits, line ends after signs
CL100K_PATTERN = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen 2 and 3: as GPT-4, every digit alone
QWEN2_PATTERN = CL100K_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
# GPT-4o: as GPT-4, words also cut where lower case is followed by upper case
O200K_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+(?i:{CONTRACTIONS})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*(?i:{CONTRACTIONS})?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what lies between white space
WORD_PATTERN = r" ?\S+|\s+(?!\S)|\s+"
# as GPT-2, but words that follow one another stay together: room for super-words (SuperBPE)
SUPERWORD_PATTERN = GPT2_PATTERN.replace(r"| ?\p{L}+|", r"|(?: ?\p{L}+)+|")
