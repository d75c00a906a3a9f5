"""The run directory, and files in it that are written whole or not at all."""
