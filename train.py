"""The same as ``l2v train``: see l2v/cli/train.py, or ``python train.py --help``."""

from l2v.cli.train import start

if __name__ == "__main__":
    start()
