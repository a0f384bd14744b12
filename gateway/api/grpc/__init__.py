"""The gRPC face, package personaplex.v1: answers to recordings, and live conversations."""
