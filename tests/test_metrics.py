"""Metrics against scikit-image and numpy, and on candidates that diverged."""

import warnings

import numpy as np
import pytest
from skimage import metrics as reference

from jaxleak.errors import InputError
from jaxleak.results import metrics

SHAPES = [(28, 28, 1), (32, 32, 3), (11, 11, 1), (40, 17, 3)]


def pair(shape, n=5, seed=0):
    """Smooth true images, and candidates around them that leave [0, 1]."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, shape[0])[:, None, None] * np.linspace(1, 0.2, shape[1])[None, :, None]
    truth = np.clip(ramp + 0.1 * rng.standard_normal((n, *shape)), 0, 1)
    scale = np.array([0.01, 0.05, 0.2, 0.5, 1.0])[:n, None, None, None]
    return truth + scale * rng.standard_normal(truth.shape), truth


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_equals_scikit_image(shape):
    x, truth = pair(shape)
    expected = [
        reference.structural_similarity(
            np.clip(a, 0, 1),
            b,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
        )
        for a, b in zip(x, truth, strict=True)
    ]
    # The one difference left: dm_pix keeps the covariance below the geometric mean of its clipped variances.
    np.testing.assert_allclose(metrics.ssim(x, truth), expected, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_and_mse_equal_scikit_image(shape):
    x, truth = pair(shape)
    clipped = np.clip(x, 0, 1)
    for i in range(len(x)):
        assert metrics.mse(x, truth)[i] == pytest.approx(reference.mean_squared_error(x[i], truth[i]))
        expected = reference.mean_squared_error(clipped[i], truth[i])
        assert metrics.mse(x, truth, clip=True)[i] == pytest.approx(expected)
        expected = reference.peak_signal_noise_ratio(truth[i], clipped[i], data_range=1.0)
        assert metrics.psnr(x, truth)[i] == pytest.approx(expected)


def test_relative_error_and_max_abs_equal_numpy():
    x, truth = pair((32, 32, 3))
    norms = np.linalg.norm((x - truth).reshape(5, -1), axis=1), np.linalg.norm(truth.reshape(5, -1), axis=1)
    np.testing.assert_allclose(metrics.relative_error(x, truth), norms[0] / norms[1], rtol=1e-12)
    np.testing.assert_array_equal(metrics.max_abs(x), np.abs(x).reshape(5, -1).max(axis=1))


def test_affine_error_equals_least_squares():
    """One contrast for all channels, a brightness for each: numpy's solution of the same problem."""
    x, truth = pair((9, 7, 3))
    channel = np.broadcast_to(np.eye(3), (9, 7, 3, 3)).reshape(-1, 3)
    for i in range(len(x)):
        columns = np.column_stack([x[i].ravel(), channel])
        fit = columns @ np.linalg.lstsq(columns, truth[i].ravel(), rcond=None)[0]
        spread = np.linalg.norm(truth[i] - truth[i].mean(axis=(0, 1)))
        expected = np.linalg.norm(fit - truth[i].ravel()) / spread
        assert metrics.affine_error(x, truth)[i] == pytest.approx(expected, rel=1e-9)


def test_affine_error_does_not_see_contrast_and_brightness():
    x, truth = pair((32, 32, 3))
    changed = 7.5 * x + np.array([3.0, -2.0, 0.5])
    np.testing.assert_allclose(metrics.affine_error(changed, truth), metrics.affine_error(x, truth), rtol=1e-9)
    np.testing.assert_allclose(metrics.affine_error(-x, truth), 1)  # a negative is not the picture
    np.testing.assert_allclose(metrics.affine_error(np.full_like(truth, 0.3), truth), 1)
    assert np.isnan(metrics.affine_error(x, np.full_like(truth, 0.1))).all()


def test_true_image_is_perfect():
    _, truth = pair((32, 32, 3))
    values = metrics.image_metrics(truth, truth)
    for name, perfect in {
        "mse": 0,
        "mse_clipped": 0,
        "psnr": np.inf,
        "ssim": 1,
        "relative_error": 0,
        "affine_error": 0,
    }.items():
        np.testing.assert_allclose(values[name], perfect, atol=1e-9)


def test_float32_is_measured_in_float64():
    x, truth = pair((32, 32, 3))
    single = metrics.image_metrics(x.astype(np.float32), truth.astype(np.float32))
    for name, values in metrics.image_metrics(x, truth).items():
        assert single[name].dtype == np.float64
        np.testing.assert_allclose(single[name], values, rtol=1e-4, atol=1e-5)


def test_blocks_do_not_change_ssim():
    x, truth = pair((12, 12, 1), n=1)
    many = np.concatenate([x * k / 70 for k in range(70)])  # one full block and a padded one
    singly = [metrics.ssim(image[None], truth)[0] for image in many]
    np.testing.assert_allclose(metrics.ssim(many, truth), singly, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 5, 10])
def test_ssim_of_images_smaller_than_the_window(side):
    x, truth = pair((side, 14, 3))
    values = metrics.ssim(x, truth)
    assert np.isfinite(values).all()
    assert (np.abs(values) <= 1 + 1e-9).all()
    np.testing.assert_allclose(metrics.ssim(truth, truth), 1, atol=1e-9)


@pytest.mark.parametrize("size", [1e16, 1e38, 1e160, 1e300])
def test_huge_candidates_do_not_overflow_where_float64_suffices(size):
    _, truth = pair((32, 32, 3), n=2)
    x = truth + size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metrics.image_metrics(x, truth)
    length = np.sqrt((truth**2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(values["relative_error"], size * np.sqrt(32 * 32 * 3) / length, rtol=1e-9)
    np.testing.assert_allclose(values["max_abs"], size)
    np.testing.assert_allclose(values["mse"], size**2 if size < 1e150 else np.inf)
    for name in ("mse_clipped", "psnr", "ssim"):  # clipped, it is a white image
        expected = metrics.image_metrics(np.ones_like(truth), truth)[name]
        np.testing.assert_allclose(values[name], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_make_no_noise_and_touch_no_neighbour(bad):
    x, truth = pair((32, 32, 3))
    expected = metrics.image_metrics(x, truth)
    x[2, 4, 5, 1] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metrics.image_metrics(x, truth)
    for name in expected:
        np.testing.assert_allclose(np.delete(values[name], 2), np.delete(expected[name], 2), atol=1e-12)
    for name in ("mse", "relative_error", "max_abs"):
        np.testing.assert_equal(values[name][2], np.nan if np.isnan(bad) else np.inf)
    for name in ("mse_clipped", "psnr", "ssim", "affine_error"):
        assert np.isnan(values[name][2])


def test_all_non_finite():
    _, truth = pair((32, 32, 3))
    assert np.isnan(metrics.ssim(np.full_like(truth, np.nan), truth)).all()


def test_black_truth():
    black = np.zeros((2, 12, 12, 1))
    x = black.copy()
    x[1, 0, 0, 0] = 0.5
    np.testing.assert_array_equal(metrics.relative_error(x, black), [0, np.inf])


def test_one_truth_for_all_candidates():
    x, truth = pair((32, 32, 3))
    everywhere = np.broadcast_to(truth[:1], x.shape)
    for name, values in metrics.image_metrics(x, truth[:1]).items():
        np.testing.assert_array_equal(values, metrics.image_metrics(x, everywhere)[name])


def test_no_candidates():
    empty = np.zeros((0, 32, 32, 3))
    assert all(values.shape == (0,) for values in metrics.image_metrics(empty, empty).values())


def test_wrong_shapes_are_named():
    x, truth = pair((32, 32, 3))
    with pytest.raises(InputError, match=r"`x` must be a batch of images .* got shape \[32, 32, 3\]"):
        metrics.mse(x[0], truth[0])
    with pytest.raises(InputError, match=r"`truth` must have the candidates' shape \[5, 32, 32, 3\]"):
        metrics.image_metrics(x, truth[:2])
