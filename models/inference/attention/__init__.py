"""What the tokens of a step attend to, part by part; parts of one token are merged by their log-sum-exps.

    merge       two parts of one softmax into one
    gathered    a part on any device: keys laid side by side, masked; the reference
    paged       a part on a processor: a kernel that reads the pages where they lie
    let_go      what a cache policy leaves of pages that it gave back
    spans       pages that several sequences share, attended to once for all of them
    step        all of it for the pieces of a step, as the decoder's LayerAttention

Tensor names end in their axes: T tokens, B pieces in one call, Q queries of a piece, L keys of a piece, S slots of a
cache, H query heads, K key-value heads, G query heads of each key-value head, E numbers per head.
"""
