"""The vocabulary of hand-built graphs: weights, norms, attention, feed-forward, streaming convolution, sampling."""
