"""What the audio streams hold while a prompt is fed: the reference's codes of silence and of a 440 Hz sine."""

SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Agent's codebooks."""

SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""User's codebooks."""
