"""The process: Lightning's private API, ranks, signals and progress."""
