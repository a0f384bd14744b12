"""Mimi's encoder: a frame of 1920 samples in, its 8 codes out."""
