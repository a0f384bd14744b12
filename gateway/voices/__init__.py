"""Preset voices: their files, what a running server offers, and how one is added or removed."""
