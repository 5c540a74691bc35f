"""The same as ``l2v mine``: see l2v/cli/mine.py, or ``python mine.py --help``."""

from l2v.cli.mine import start

if __name__ == "__main__":
    start()
