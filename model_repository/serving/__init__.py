"""What a Triton model needs at run time: sessions whose state stays in place, and the slots around them."""
