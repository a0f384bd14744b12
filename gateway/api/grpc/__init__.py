"""The gRPC API, package personaplex.v1: responses to recordings, and live sessions."""
