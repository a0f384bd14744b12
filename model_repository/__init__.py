"""From a PersonaPlex checkpoint to a Triton model repository, and what Triton needs to run it."""
