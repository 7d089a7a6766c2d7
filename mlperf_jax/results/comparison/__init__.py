"""Comparisons of optimizers: what was found, what can be said of it, and how it is shown."""
