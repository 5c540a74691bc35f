"""Whose code a saved file may name: modules that the user trusts, beside l2v's own."""

import os
import re

VARIABLE = "L2V_ALLOW_MODULES"
"""Environment variable: names of modules, separated by commas."""


def allowed_modules() -> tuple[str, ...]:
    """Modules that the user trusts: ``L2V_ALLOW_MODULES=my_package,another``."""
    return tuple(name for name in re.split(r"[,\s]+", os.environ.get(VARIABLE, "")) if name)
