"""`python -m model_repository.synthetic.speaking WORK OUT`: run the recipe; it goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_repository.synthetic.speaking.recipe import Recipe


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Train the small speaking model.")
    parser.add_argument("work", type=Path, help="folder of speech, weights in training and codes")
    parser.add_argument("out", type=Path, help="folder for the model: compact/ and checkpoint/")
    arguments = parser.parse_args()
    Recipe(arguments.work).run(arguments.out)


if __name__ == "__main__":
    main()
