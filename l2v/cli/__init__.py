"""The programs, a module each: read top-down, compose, check, run."""

import logging

# PEFT imports bitsandbytes wherever it is installed, and that reports the CPU kernels it lacks
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
