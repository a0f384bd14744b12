"""What a Triton model needs at run time: ONNX Runtime sessions whose state stays in place, and the slots around them."""
