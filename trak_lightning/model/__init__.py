"""The user's model: its checkpoints, parameters, and the state it is left in."""
