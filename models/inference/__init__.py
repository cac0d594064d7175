"""Packed-prefill inference: many prompts in one ragged forward pass, no padding, shared prefixes, exact.

Continuing prompts:

    generate         the whole of it as one function of prompts
    requests         what is asked for, and what came of it
    settings         how much is done at once, and the pages that this takes
    engine           requests join, advance and leave: packed and chunked prefill, ragged decoding, verified drafts
    live             sequences on their way
    choosing         from the hidden vectors of a pass to the tokens that follow
    sampling         from logits to one token
    stopping         texts that end a continuation
    beams            beam search: likely continuations of many prompts
    hypotheses       which of them live on, which are finished

Keys and values:

    pages            which pages of the cache are taken, and how often
    cache            keys and values of live sequences, in pages
    prefixes         pages of prompts seen before, found by their ids
    attention/       what a step's tokens attend to: their own documents, pages, and prefixes that several share

Plug-ins:

    drafting/        what proposes tokens; speculation says how many, verify which of them the model would have chosen
    policy           what generated tokens keep of what stands before them; retrieval_heads finds heads that need all
    order_free       prompts of which a part is a set

Reading without continuing:

    ragged, passes   sequences end to end, and forward passes over them
    scoring          log-probabilities of all tokens
    embedding        one vector for each sequence
    columns          both for a column of ids
"""
