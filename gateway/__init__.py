"""The service people talk to: REST in front, an 80 ms frame loop inside, Triton behind."""
