"""Checkpoints that are made here."""
