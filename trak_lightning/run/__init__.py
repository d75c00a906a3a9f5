"""The run directory, and how files in it are written, read and named in messages."""
