"""Whose code a saved file may name: modules that the user trusts, beside l2v's own."""

import os
import re
from collections.abc import Sequence

VARIABLE = "L2V_ALLOW_MODULES"
"""Environment variable: names of modules, separated by commas."""


def allowed_modules() -> tuple[str, ...]:
    """Modules that the user trusts: ``L2V_ALLOW_MODULES=my_package,another``."""
    return tuple(name for name in re.split(r"[,\s]+", os.environ.get(VARIABLE, "")) if name)


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a dotted name is one of the modules, or of what is in them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
