"""Sets of features instead of sequences of ids: bags of any size into packs of one size.

A bag is a set of feature vectors with one label, such as the patches of a slide. Bags differ in size a thousandfold, so
batches of them are mostly padding. Following PackMIL (arXiv 2509.20923, section 3): of each bag a part of its instances
is drawn, and these parts are packed into rows of one capacity, which a model attends to bag by bag. What was not drawn
is packed likewise into residual rows; such a row is one set over several bags ("hyperslide"), with their mixed label.

    bags --BagStore--> counts --plan_sets--> SetPlan --write_sets--> shards --SetPacks--> packs for a trainer

Unlike the paper's code, which draws when it makes a batch and lets go of what exceeds a pack, every instance of every
bag is in exactly one row: in a main row if it was drawn, else in a residual one. Another epoch draws anew: `write_sets`
with that epoch, or `draw_packs`, which writes nothing.
"""

from seqmill.packing.sets.bags import BagStore, bags_table
from seqmill.packing.sets.drawing import SetSettings
from seqmill.packing.sets.packs import Pack, SetPacks, as_torch, draw_packs, join_packs, mixed_labels
from seqmill.packing.sets.planning import SetPlan, load_set_plan, plan_sets, save_set_plan
from seqmill.packing.sets.validation import validate_sets
from seqmill.packing.sets.write import set_manifest_entries, write_sets

__all__ = [
    "BagStore",
    "Pack",
    "SetPacks",
    "SetPlan",
    "SetSettings",
    "as_torch",
    "bags_table",
    "draw_packs",
    "join_packs",
    "load_set_plan",
    "mixed_labels",
    "plan_sets",
    "save_set_plan",
    "set_manifest_entries",
    "validate_sets",
    "write_sets",
]
