"""Run directories filled by hand."""

import numpy as np

from jaxleak.results.store.columns import COLUMNS
from jaxleak.results.store.run import Run

SETTINGS = {"attacks": ["dlg", "idlg"], "seeds": 50, "solver": {"name": "torch-lbfgs", "history": 100}}


ENVIRONMENT = {"versions": {"jax": "0"}, "device": "cpu", "git_revision": "unknown"}


EXAMPLE = {"string": "x", "int64": 3, "double": 0.25, "bool": True}


def make_row(trial, **changes):
    return {name: EXAMPLE[kind] for name, kind, *_ in COLUMNS} | {"trial": trial} | changes


def make_arrays(trials, steps=4):
    """Arrays that say which trial they belong to."""
    ids = np.asarray(list(trials))
    return {
        "candidate": np.full((len(ids), 4, 4, 1), ids[:, None, None, None], np.float32),
        "objective_trace": np.full((len(ids), steps), ids[:, None], np.float32),
        "snapshots": np.full((len(ids), 2, 4, 4, 1), ids[:, None, None, None, None] % 256, np.uint8),
    }


def commit(run, trials):
    trials = list(trials)
    run.append([make_row(trial) for trial in trials], make_arrays(trials))


OPEN_RUNS: list[Run] = []


def create(path, settings=SETTINGS):
    OPEN_RUNS.append(Run.create_or_resume(path, settings, ENVIRONMENT))
    return OPEN_RUNS[-1]
