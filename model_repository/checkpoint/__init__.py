"""A checkpoint in any published format: its weights, geometry and voices."""
