"""The WebSocket APIs for live sessions."""
