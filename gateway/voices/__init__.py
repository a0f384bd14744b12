"""Voice presets: the file format, the registry of a repository's presets, and the store that adds and removes them."""
