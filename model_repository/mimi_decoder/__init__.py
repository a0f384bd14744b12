"""Mimi's decoder: the 8 codes of a frame in, 1920 samples out."""
