"""One reader per published format; all give tensors by the reference's names, plus the geometry."""
