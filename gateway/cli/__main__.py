"""`python -m gateway.cli`: the same as `personaplex`."""

from __future__ import annotations

from gateway.cli import main

main()
