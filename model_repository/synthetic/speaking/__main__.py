"""`python -m model_repository.synthetic.speaking WORK OUT`: run the recipe; it goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_repository.synthetic.speaking.recipe import STAGES, Recipe


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Train the small speaking model.")
    parser.add_argument("work", type=Path, help="folder of speech, weights in training and codes")
    parser.add_argument("out", type=Path, nargs="?", help="folder for the model: compact/ and checkpoint/")
    parser.add_argument("--stage", choices=list(STAGES), help="run this stage only, which others wait for")
    arguments = parser.parse_args()
    recipe = Recipe(arguments.work)
    if arguments.stage:
        STAGES[arguments.stage](recipe)
    elif arguments.out:
        recipe.run(arguments.out)
    else:
        parser.error("OUT is needed")


if __name__ == "__main__":
    main()
