"""What a trained model tells of texts that are there: packed forward passes of real tokens alone, no padding.

ragged     sequences of ids end to end, and which of them share a forward pass
passes     the hidden states of those
scoring    log-probabilities of tokens
embedding  one vector a sequence
columns    both for a column of an Arrow table
"""
