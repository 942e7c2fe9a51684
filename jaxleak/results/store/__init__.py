"""The run directory: rows in Parquet parts, arrays beside them, whole or not there.

run.py          `Run`: opened, written and continued
description.py  run.json: settings and versions, and whether a directory holds the same
versions.py     of the solvers, and which rows are of which
columns.py      what a row holds
parts.py        one committed part, and its checksums
locks.py        who writes
shard.py        the share of a run that one process takes
environment.py  versions, device and revision that a run was made with
"""
