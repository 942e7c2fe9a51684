"""Updates of Flower, Opacus and Hugging Face, made by their own code. The slow tests install the extra `stacks`."""

import importlib
import importlib.util
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest

import jaxleak
from experiments.stack_clients import STACKS
from experiments.stacks import fits_at_the_truth
from tests.oracles.require_torch import require_torch

PACKAGES = ("flwr", "opacus", "transformers")


@pytest.fixture(scope="module")
def stacks():
    """The extra, installed beside what is there; PyTorch stays as it is."""
    require_torch()
    if not all(importlib.util.find_spec(package) for package in PACKAGES):
        project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
        wanted = [text for text in project["optional-dependencies"]["stacks"] if not text.startswith("torch")]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
        importlib.invalidate_caches()
    return STACKS


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STACKS)
def test_the_true_image_explains_a_stacks_update(stacks, name, tmp_path):
    import torch

    pixels, _ = jaxleak.load_dataset("photos").images([6])
    x = torch.from_numpy(np.asarray(pixels, np.float32).transpose(0, 3, 1, 2).copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given, _ = stacks[name][1](tmp_path, x, torch.tensor([3]))
        np.savez(tmp_path / "truth.npz", images=(255 * pixels).round().astype(np.uint8), labels=[3])
        victim = jaxleak.load_update(**given, truth=tmp_path / "truth.npz")
    # Noise of 0.001 on 14,000 entries of an update of norm 1; a difference of weights has their rounding.
    assert fits_at_the_truth(victim) < {"opacus-noise": 0.2, "opacus": 1e-6}.get(name, 1e-4)
