"""The user's samples: read a dataset in order, fetch single samples of a batch, and move batches to a device."""
