"""Reports of stored results: a table, figures and one page that needs no network.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `fitting`, `analysis`.
"""

from onestep_jax.report.figures import plot_curves
from onestep_jax.report.write import Report, write_report

__all__ = ["Report", "plot_curves", "write_report"]
