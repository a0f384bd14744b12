"""The heart: token grid with delays, persona prefix, frame loop. No network: it talks to an `Engine`."""
