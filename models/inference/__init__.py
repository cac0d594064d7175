"""Packed-prefill inference: many prompts in one ragged forward pass, no padding, shared prefixes, exact.

requests    what is asked for, and what came of it
engine      requests join, advance and leave: packed and chunked prefill, ragged decoding, speculation
pages       which pages of the cache are taken, and how often
cache       keys and values of live sequences, in pages
prefixes    pages of prompts seen before, found by their ids
attention   what a step's tokens attend to: their own documents, pages, and prefixes that several share
beams       beam search: likely continuations of many prompts
hypotheses  which continuations live on, which are finished
sampling    from logits to tokens
generate    the whole of it as one function of prompts
"""
