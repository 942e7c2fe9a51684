"""A tiny model, a tiny data set, and sweeps over them."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import numpy as np
import pytest

from jaxleak import (
    DLG,
    IDLG,
    Adam,
    Sweep,
    TorchLBFGS,
    load_dataset,
    make_victim,
)
from jaxleak.models.weight_init import dlg_uniform
from jaxleak.results.result import Result

SHAPE = (8, 8, 1)


CLASSES = 3


# Few evaluations, so that what rounding does to L-BFGS stays small.
SHORT_LBFGS = TorchLBFGS(history=10, inner_steps=6)


QUICK_DLG, QUICK_IDLG = (replace(preset, solver=SHORT_LBFGS, iterations=2) for preset in (DLG, IDLG))


QUICKEST = replace(IDLG, solver=Adam(), iterations=3)


class Tiny(nn.Module):
    """Two dense layers: quick to compile. Uniform weights are the same however they are compiled, normal ones not."""

    num_classes: int
    head: str = "head"

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, kernel_init=dlg_uniform, bias_init=dlg_uniform)
        x = nn.sigmoid(dense(12, name="first")(x.reshape(x.shape[0], -1)))
        return dense(self.num_classes, name=self.head)(x)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight grey pictures of 8 by 8 pixels; picture i has label i % 3."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(8) % CLASSES)
    return load_dataset(path)


def sweep_of(
    data, images=(4, 1, 3), attacks=(QUICK_DLG, QUICK_IDLG), seeds=2, network="per-trial", **settings
) -> Sweep:
    victim = make_victim(Tiny(CLASSES), data, list(images), network=network)
    return Sweep(victim=victim, attacks=tuple(attacks), seeds=seeds, **{"snapshots": (0, 1), **settings})


def by_key(result: Result) -> dict[tuple[str, int, int], dict]:
    return {(row["attack"], row["image"], row["seed"]): row for row in result.rows}


# What belongs to a trial's own computation; the rest names the run or the moment.
OWN = (
    *("objective", "relative_objective", "mse", "mse_clipped", "psnr", "ssim", "relative_error", "max_abs"),
    *("status", "evaluations", "iterations", "threshold_iterations", "threshold_evaluations", "label_found"),
)


def assert_same_trials(got: Result, wanted: Result):
    """The trials that both have ended alike, up to rounding."""
    got_rows, wanted_rows = by_key(got), by_key(wanted)
    shared = got_rows.keys() & wanted_rows.keys()
    assert len(shared) == min(len(got_rows), len(wanted_rows)) > 0
    for key in shared:
        for name in OWN:
            assert_same(got_rows[key][name], wanted_rows[key][name], (key, name))


def assert_same(got, wanted, what):
    """Equal, numbers that are not counts up to rounding."""
    assert got == (pytest.approx(wanted, rel=1e-6, abs=1e-9) if isinstance(wanted, float) else wanted), what
