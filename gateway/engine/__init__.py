"""Implementations of the `Engine` protocol: Triton, and a fake one for unit tests."""
