"""Fewer bits for a matrix: block quantizers, what they are calibrated with, and rescaling that makes them exact."""
