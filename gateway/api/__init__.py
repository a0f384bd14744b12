"""The APIs, one package each: parse requests, call the session layer, map errors."""
