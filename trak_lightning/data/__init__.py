"""The user's samples: datasets in order, batches taken apart, moved to a device."""
