"""Readers of the model files of other packages: each turns one published format into a `ForceField`."""
