"""Generated from personaplex.proto by `python -m gateway.api.grpc.generate`."""
