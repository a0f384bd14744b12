"""Benchmarks of the running service, gateway and Triton together."""
