"""What a model makes of documents that it was not trained on, and of those that were planted to be found again."""

from seqmill.models.evaluation.held_out import EvaluationConfig, HeldOut
from seqmill.models.evaluation.losses import evaluate
from seqmill.models.evaluation.source_loss import SourceLoss, gather_losses, merge, total

__all__ = ["EvaluationConfig", "HeldOut", "SourceLoss", "evaluate", "gather_losses", "merge", "total"]
