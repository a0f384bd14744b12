"""Readers of weights, one per published format; all give tensors by the reference's names."""
