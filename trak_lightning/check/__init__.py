"""What would be attributed, and at what cost: findings from a few batches."""
