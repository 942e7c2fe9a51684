"""The run directory: rows in Parquet parts, arrays beside them, whole or not there.

run.py    `Run`: opened, written and continued
parts.py  one committed part, its columns and checksums
locks.py  who writes
shard.py  the share of a run that one process takes
"""
