"""Figures for a paper's column, drawn with matplotlib's objects: no pyplot, no display.

Each function draws one figure, writes it as a PNG when it is given a path, and returns it.

    grid.py       recoveries over the iterations
    traces.py     objective and image error over the iterations
    rates.py      success for each image, shares below thresholds of the MSE
    roc.py        ROC curves
    whole_run.py  every figure of a run
    style.py      sizes, colours, how files are written
"""

from jaxleak.results.figures.grid import choose_trials, recovery_grid
from jaxleak.results.figures.rates import mse_shares, success_by_image
from jaxleak.results.figures.traces import convergence, hold_last
from jaxleak.results.figures.whole_run import draw_all

__all__ = ["choose_trials", "convergence", "draw_all", "hold_last", "mse_shares", "recovery_grid", "success_by_image"]
