"""The same as ``l2v evaluate``: see l2v/cli/evaluate.py, or ``python evaluate.py --help``."""

from l2v.cli.evaluate import start

if __name__ == "__main__":
    start()
