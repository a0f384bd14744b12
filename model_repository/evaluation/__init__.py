"""Compares built repositories of one checkpoint: what a precision costs in quality, and saves in memory and time."""
