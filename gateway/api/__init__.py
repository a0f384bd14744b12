"""The faces people talk to, one file each: parse, call, map errors."""
