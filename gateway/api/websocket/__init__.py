"""The WebSocket faces of live calls."""
