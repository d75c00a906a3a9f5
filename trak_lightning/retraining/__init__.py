"""Training models on recorded subsets of the training set."""
