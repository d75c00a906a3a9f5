"""From a model and data to stored features: which feature sets, whose blocks, and the rows of each batch."""
