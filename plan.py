"""The same as ``l2v plan``: see l2v/cli/plan.py, or ``python plan.py --help``."""

from l2v.cli.plan import start

if __name__ == "__main__":
    start()
