"""Image priors: their formulas, torch's numbers, and what they are at images that are flat, black or alike."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.priors import consistency, norm_prior, registered, total_variation
from tests.oracles.require_torch import require_torch

PRIORS = {"total_variation": total_variation, "norm_prior": norm_prior, "consistency": consistency}


def images(name, seed=0):
    """A batch [b h w c], for `consistency` a group of them; the second image is black, the first partly flat."""
    x = np.random.default_rng(seed).uniform(-1, 1, (3, 2, 5, 4, 3))
    x[:, 1], x[:, 0, 1:3, 1:3] = 0, 0.25
    return x if name == "consistency" else x[0]


@pytest.mark.torch
@pytest.mark.parametrize("name", PRIORS)
def test_values_and_gradients_equal_torch(name):
    torch = require_torch()
    oracle = importlib.import_module("tests.oracles.torch_objectives")
    x = images(name)
    value, slope = jax.value_and_grad(PRIORS[name])(jnp.asarray(x))
    nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3)))
    wanted, wanted_slope = oracle.value_and_slope(getattr(oracle, name), nchw)
    assert float(value) == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(slope, np.moveaxis(wanted_slope.numpy(), -3, -1), rtol=1e-12, atol=1e-15)


def test_total_variation_counts_both_directions_by_their_own_means():
    x = jnp.array([[0.0, 1.0, 3.0], [4.0, 4.0, 4.0]])[None, :, :, None]
    assert float(total_variation(x)) == pytest.approx((1 + 2 + 0 + 0) / 4 + (4 + 3 + 1) / 3)
    twice = jnp.concatenate([x, x])
    assert float(total_variation(twice)) == pytest.approx(float(total_variation(x)))


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 1, 5, 3), (1, 4, 1, 1)])
def test_flat_images_have_no_total_variation(shape):
    value, slope = jax.value_and_grad(total_variation)(jnp.full(shape, 0.3))
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)


def test_norm_is_the_mean_of_norms():
    x = jnp.zeros((2, 1, 2, 1)).at[0, 0, :, 0].set(jnp.array([3.0, 4.0]))
    value, slope = jax.value_and_grad(norm_prior)(x)
    assert float(value) == pytest.approx(2.5)
    np.testing.assert_allclose(slope.ravel(), [0.3, 0.4, 0, 0])


def test_a_group_that_agrees_is_consistent():
    x = jnp.asarray(images("norm_prior"))
    alike = jnp.stack([x, x])  # of two, the mean is exact
    value, slope = jax.value_and_grad(consistency)(alike)
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)
    assert float(consistency(alike.at[0].add(0.2))) == pytest.approx(0.1**2 * x.size)


def test_registration_finds_the_move_that_a_loop_finds():
    """And leaves images that fit as they are, flat ones too."""
    rng = np.random.default_rng(2)
    reference = rng.random((2, 9, 8, 3))
    x = np.stack([reference, np.roll(reference, (2, -1), (1, 2)), rng.random(reference.shape), 0 * reference])
    found = registered(jnp.asarray(x), jnp.asarray(reference), 2)
    for member, batch in enumerate(x):
        for place, image in enumerate(batch):
            padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
            moved = [padded[r : r + 9, c : c + 8] for r in range(5) for c in range(5)]
            wanted = min(moved, key=lambda one: np.sum((one - reference[place]) ** 2))
            np.testing.assert_array_equal(found[member, place], wanted)
    np.testing.assert_array_equal(found[0], reference)
    np.testing.assert_array_equal(found[1, :, 2:-2, 1:-1], reference[:, 2:-2, 1:-1])


def test_a_registered_consensus_draws_images_but_is_not_drawn():
    """Its gradient is 2 (x_g - consensus) / g; registered, two images of a moved square disagree less about it."""
    image = np.zeros((1, 10, 10, 1))
    image[:, 3:6, 3:6] = 1
    x = jnp.asarray(np.stack([image, image, image, np.roll(image, 1, 2)]))
    value, slope = jax.value_and_grad(consistency)(x, 1)
    consensus = np.mean(registered(x, jnp.mean(x, axis=0), 1), axis=0)
    np.testing.assert_array_equal(consensus, image)
    np.testing.assert_allclose(slope, 2 * (x - consensus) / 4, atol=1e-15)
    assert float(value) == pytest.approx(6 / 4)
    np.testing.assert_allclose(jax.jit(jax.grad(consistency), static_argnums=1)(x, 1), slope, atol=1e-15)
    many = jnp.stack([x, x[::-1] * 0.5])
    together = jax.vmap(lambda one: consistency(one, 1))(many)
    np.testing.assert_allclose(together, [consistency(one, 1) for one in many], rtol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_trials_at_once_equal_a_loop(name):
    many = jnp.stack([jnp.asarray(images(name, seed)) for seed in range(3)])
    together = jax.vmap(jax.value_and_grad(PRIORS[name]))(many)
    for trial, x in enumerate(many):
        value, slope = jax.value_and_grad(PRIORS[name])(x)
        np.testing.assert_allclose(together[0][trial], value, rtol=1e-12)
        np.testing.assert_allclose(together[1][trial], slope, rtol=1e-12, atol=1e-15)


# --- patches ---


@pytest.fixture(scope="module")
def mixture():
    from jaxleak import fit_patches, load_dataset

    return fit_patches(load_dataset("photos"), exclude=[6, 12], components=4, patches=2000)


def sklearns(mixture):
    """The same mixture as scikit-learn has it."""
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(len(mixture.means))
    model.weights_, model.means_ = np.exp(mixture.log_weights), mixture.means
    model.precisions_cholesky_ = mixture.factors
    return model


def test_log_densities_of_patches_are_scikit_learns(mixture):
    from jaxleak.attacks.priors import patch_log_density
    from jaxleak.threat.patches import centred

    patches = centred(np.random.default_rng(0).random((50, 8, 8, 3)))
    found = patch_log_density(jnp.asarray(patches), tuple(map(jnp.asarray, mixture)))
    np.testing.assert_allclose(found, sklearns(mixture).score_samples(patches), atol=1e-5, rtol=1e-10)


@pytest.mark.parametrize(("height", "width", "count"), [(32, 32, 49), (8, 8, 1), (14, 9, 6)])
def test_the_prior_is_minus_the_mean_over_patches(mixture, height, width, count):
    from jaxleak.attacks.priors import patch_prior
    from jaxleak.threat.patches import centred

    x = np.random.default_rng(1).random((2, height, width, 3))
    starts = [sorted({*range(0, side - 8, 4), side - 8}) for side in (height, width)]
    patches = np.stack([each[r : r + 8, c : c + 8] for each in x for r in starts[0] for c in starts[1]])
    assert len(patches) == 2 * count
    wanted = -np.mean(sklearns(mixture).score_samples(centred(patches)))
    parts = tuple(map(jnp.asarray, mixture))
    value, slope = jax.value_and_grad(patch_prior)(jnp.asarray(x), parts)
    assert float(value) == pytest.approx(wanted, rel=1e-9)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)
    many = jnp.stack([jnp.asarray(x), jnp.asarray(x)[::-1] ** 2])
    together = jax.vmap(jax.value_and_grad(patch_prior), (0, None))(many, parts)
    for lane, one in enumerate(many):
        alone, own = jax.value_and_grad(patch_prior)(one, parts)
        assert float(together[0][lane]) == pytest.approx(float(alone), rel=1e-12)
        np.testing.assert_allclose(together[1][lane], own, rtol=1e-9, atol=1e-12)
    assert np.isfinite(float(patch_prior(jnp.full(x.shape, 0.5), parts)))


def test_photographs_are_likelier_than_noise_of_their_contrast(mixture):
    from jaxleak import load_dataset
    from jaxleak.attacks.priors import patch_prior

    pixels, _ = load_dataset("photos").images([6])
    shuffled = np.random.default_rng(0).permutation(pixels.ravel()).reshape(pixels.shape)
    parts = tuple(map(jnp.asarray, mixture))
    assert float(patch_prior(jnp.asarray(pixels, float), parts)) < float(
        patch_prior(jnp.asarray(shuffled, float), parts)
    )


def test_what_cannot_be_fitted_is_refused(monkeypatch):
    import sys

    from jaxleak import InputError, fit_patches, load_dataset

    photos = load_dataset("photos")
    with pytest.raises(InputError, match="need images that are not attacked"):
        fit_patches(photos, exclude=photos.index.tolist())
    with pytest.raises(InputError, match="at least 8x8 pixels"):
        fit_patches(load_dataset("text"))
    with pytest.raises(InputError, match="at least 10 for each of 10"):
        fit_patches(photos, patches=90)
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(InputError, match=r"pip install 'jaxleak\[infer\]'"):
        fit_patches(photos)


def test_an_attack_with_patches_keeps_them_in_the_run(tmp_path):
    import jaxleak
    from jaxleak.threat.patches import read_patches
    from tests.commands import call, refusal

    command = (
        *("run", "--attack", "idlg", "--patches", 0.01, "--images", 6, "--seeds", 2, "--max-evaluations", 3),
        *("--no-figures", "--no-report", "--out", tmp_path / "run"),
    )
    first = call(*command)
    assert first.code == 0, first.err
    kept = read_patches(tmp_path / "run")
    assert kept.means.shape == (10, 192)
    assert call(*command).code == 0  # the same mixture, or it would be refused
    victim = {"settings": jaxleak.Run.open(tmp_path / "run").settings}["settings"]["victim"]
    assert victim["patches"] == f"sha256:{kept.digest}"
    assert {row["attack"] for row in jaxleak.Run.open(tmp_path / "run").rows()} == {"idlg+patches=0.01"}
    (tmp_path / "run/patches.npz").write_bytes(b"PK")
    assert "patches.npz is damaged" in refusal(*command)
    refused = refusal(
        "run", "--dataset", "text", "--model", "transformer", "--attack", "dlg", "--patches", 1, "--out", tmp_path
    )
    assert "`patches`" in refused
    attack = jaxleak.Attack(name="patched", patches=0.1)
    with pytest.raises(jaxleak.InputError, match="learned from images of the attacker's own"):
        jaxleak.Sweep(
            victim=jaxleak.make_victim("lenet", jaxleak.load_dataset("photos"), [6]), attacks=(attack,), seeds=1
        )
