"""Optimizers compared on one benchmark: the same seeds and samples for each, and the same search for settings."""
