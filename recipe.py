"""The same as ``l2v recipe``: see l2v/cli/recipe.py, or ``python recipe.py --help``."""

from l2v.cli.recipe import start

if __name__ == "__main__":
    start()
