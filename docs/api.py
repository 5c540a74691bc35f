"""Write the page of l2v's public names, from their docstrings: ``python docs/api.py site``."""

import sys
from pathlib import Path

import pdoc

import l2v

for name in l2v.__all__:
    getattr(l2v, name)  # they are imported when they are first used, and pdoc shows what is there
pdoc.render.configure(docformat="google", show_source=False)
pdoc.pdoc("l2v", output_directory=Path(sys.argv[1]))
