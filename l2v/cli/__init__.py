"""The programs, a module each: read top-down, compose, check, run."""
