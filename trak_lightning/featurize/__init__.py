"""Compute features from a model and data: create feature sets, assign their blocks to ranks, and compute the rows of batches."""
