"""From features to scores. Uses numpy only, so that scoring does not need to import torch.

Shapes: n training and m target samples, k projected dimensions, M checkpoints.
"""

from trak_lightning.scoring.base import CheckpointFeatures, Scorer, Scoring
from trak_lightning.scoring.scores import Scores

__all__ = ["CheckpointFeatures", "Scorer", "Scores", "Scoring"]
