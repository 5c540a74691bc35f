"""Runs side by side: one HTML page that opens without a network, and ``runs.json`` with its tables beside it.

    l2v report runs/demo/* --output report.html

A run is a folder with any of ``run.json``, ``config.yaml``, ``lineage.json``, ``metrics.jsonl`` and
``evaluation/<suite>.json``; what is missing is left out of the page.
"""

from l2v.report.page import write_report
from l2v.report.runs import read_runs
from l2v.report.tables import summary_rows
from l2v.report.terminal import print_scores

__all__ = ["print_scores", "read_runs", "summary_rows", "write_report"]
