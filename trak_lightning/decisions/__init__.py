"""What to do with scores: likely label errors, the effect of removing samples, what to train on, and how far to trust them."""
