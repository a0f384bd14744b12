"""The vocabulary for hand-built ONNX graphs: weights, norms, attention, feed-forward, streaming convolution, sampling."""
