"""Reports of stored results: a table, figures and one page that needs no network."""

from onestep_jax.report.figures import plot_curves
from onestep_jax.report.writing import Report, write_report

__all__ = ["Report", "plot_curves", "write_report"]
