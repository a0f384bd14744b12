"""Generated from the .proto files below; see gateway/api/grpc/generate.py."""
