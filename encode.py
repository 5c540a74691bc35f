"""The same as ``l2v encode``: see l2v/cli/encode.py, or ``python encode.py --help``."""

from l2v.cli.encode import start

if __name__ == "__main__":
    start()
