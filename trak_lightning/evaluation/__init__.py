"""Are the scores right? The linear datamodeling score, removal of samples, mislabeled samples, agreement of checkpoints."""
