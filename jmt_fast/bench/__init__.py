"""Run the checkout's benchmarks on this machine, and write README's tables and the plot from their JSON rows."""

from __future__ import annotations

from jmt_fast.bench.report import section, write_report
from jmt_fast.bench.run import QUESTIONS, Outcome, checkout, run_benchmarks

__all__ = ["QUESTIONS", "Outcome", "checkout", "run_benchmarks", "section", "write_report"]
