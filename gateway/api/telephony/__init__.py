"""Telephone calls: WebSockets of telephone services and of Asterisk. One state machine, one serializer per service."""
