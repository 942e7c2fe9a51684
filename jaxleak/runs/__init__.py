"""A sweep, run: every attack on every image from every seed, into a run directory that can be continued.

sweep.py     which trials there are
run.py       `attack`, `run_sweep`
session.py   trials that end are judged and written
judged.py    ... as they wait to be written
stop.py      signals that end a run in order
progress.py  lines that say how far it is
warnings.py  settings that may mislead
audit/       updates whose images nobody knows
infer/       words, members, properties: nothing is rebuilt
ray/         many workers on one sweep
"""
