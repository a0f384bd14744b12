"""Benchmarks of the models: built repositories, graphs and single operators, without the gateway."""
