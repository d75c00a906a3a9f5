"""Are the scores right? Retraining on random subsets, and the linear datamodeling score."""
