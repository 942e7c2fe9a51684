"""Results of trials: verdicts, numbers, tables, and the run directory that keeps them.

verdict.py    success, or how a trial failed
metrics.py    distances between images, and labels that are right
measures.py   ... what is measured of each kind of data
matching.py   which image of a batch is which
intervals.py  success rates and means with their intervals
roc.py        areas under ROC curves with theirs
summary.py    the summary of a run, and what to be careful about
tables.py     ... as text
store/        the run directory
"""
