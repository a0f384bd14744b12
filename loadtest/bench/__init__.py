"""Benchmarks of the whole service and of the models."""
