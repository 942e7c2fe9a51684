"""Dummies matched to the truth, against every permutation there is, and batches as one picture."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxleak.results.matching import batch_metrics, match, mosaic, ordered, unmosaic, worst_errors
from jaxleak.results.measures import MEASURES
from jaxleak.results.metrics import image_metrics

SHAPE = (3, 2, 2)

IMAGES = MEASURES["image"]


def test_candidates_as_bytes_and_their_size():
    pixels = np.array([np.nan, -np.inf, -0.3, 0.0, 0.25, 0.5, 0.999, 1.0, 1.4, np.inf])
    stored = IMAGES.snapshot(pixels)
    assert stored.dtype == np.uint8
    assert stored.tolist() == [0, 0, 0, 0, 64, 128, 255, 255, 255, 255]
    assert IMAGES.size(np.array([[[1.0, -7.0], [3.0, 0.5]], [[0.1, 0.2], [0.0, 0.0]]])).tolist() == [7, 0.2]


def test_measures_are_the_same_for_all_who_share_them():
    for measures in MEASURES.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            measures.worst = ()  # pyright: ignore[reportAttributeAccessIssue]


def images(*lead: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((*lead, *SHAPE))


def cheapest(dummies: np.ndarray, truths: np.ndarray) -> list[int]:
    """The dummy of each true image, -1 for none: of all pairings of as many as can be, the one of least cost."""
    few = min(len(dummies), len(truths))
    best, least = [], np.inf
    for places in itertools.combinations(range(len(truths)), few):
        for slots in itertools.permutations(range(len(dummies)), few):
            cost = sum(np.mean((truths[p] - dummies[s]) ** 2) for p, s in zip(places, slots, strict=True))
            if cost < least:
                pairs = dict(zip(places, slots, strict=True))
                best, least = [pairs.get(place, -1) for place in range(len(truths))], cost
    return best


@pytest.mark.parametrize(("d", "b"), [(4, 4), (2, 4), (4, 2), (1, 3), (3, 1), (1, 1)])
def test_matches_are_the_cheapest_of_all(d, b):
    found = set()
    for seed in range(20):
        dummies, truths = images(d, seed=seed), images(b, seed=100 + seed)
        slots = match(dummies, truths)
        assert slots.tolist() == cheapest(dummies, truths)
        found.add(tuple(slots.tolist()))
    assert len(found) > 2 or d == b == 1


def test_the_nearest_dummy_is_not_always_the_match():
    """Both dummies are nearest to the first image; it gets the one that the other image needs less."""
    truths = np.stack([np.zeros(SHAPE), np.ones(SHAPE)])
    dummies = np.stack([np.full(SHAPE, 0.1), np.full(SHAPE, 0.0)])
    assert match(dummies, truths).tolist() == [1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200, 1e20])
@pytest.mark.parametrize("d", [4, 5])
def test_what_is_not_an_image_is_matched_last(bad, d):
    """The other dummies are matched as if it were not there."""
    for seed in range(20):
        dummies, truths = images(d, seed=seed), images(4, seed=100 + seed)
        spoilt = dummies.copy()
        spoilt[1, 0, 0, 0] = bad
        rest = np.delete(np.arange(d), 1)
        wanted = [int(rest[slot]) if slot >= 0 else 1 for slot in cheapest(dummies[rest], truths)]
        assert match(spoilt, truths).tolist() == wanted


def test_dummies_that_are_all_no_images_are_matched_somehow():
    slots = match(np.full((3, *SHAPE), np.nan), images(3))
    assert sorted(slots.tolist()) == [0, 1, 2]


# --- metrics ---


def test_the_order_of_dummies_does_not_matter():
    rng = np.random.default_rng(0)
    truths = images(3, 4)
    candidates = truths + rng.normal(0, 0.3, truths.shape)
    order = np.stack([rng.permutation(4) for _ in range(3)])
    shuffled = np.take_along_axis(candidates, order[..., None, None, None], axis=1)
    one, two = batch_metrics(IMAGES, candidates, truths), batch_metrics(IMAGES, shuffled, truths)
    np.testing.assert_array_equal(one.errors, two.errors)
    for name, values in one.trials.items():
        np.testing.assert_array_equal(values, two.trials[name], err_msg=name)
    np.testing.assert_array_equal(np.take_along_axis(order, two.slots, axis=1), one.slots)
    np.testing.assert_array_equal(ordered(candidates, one.slots), ordered(shuffled, two.slots))
    np.testing.assert_array_equal(worst_errors(IMAGES, candidates, truths), worst_errors(IMAGES, shuffled, truths))


def test_metrics_are_means_and_the_largest_errors():
    truths = images(2, 3)
    candidates = truths[:, [2, 0, 1]] + np.array([0.01, 0.02, 0.05])[:, None, None, None]
    found = batch_metrics(IMAGES, candidates, truths)
    assert found.slots.tolist() == [[1, 2, 0]] * 2
    for trial in range(2):
        each = image_metrics(candidates[trial, [1, 2, 0]], truths[trial])
        for name, values in each.items():
            whole = np.max if name in ("relative_error", "affine_error", "max_abs") else np.mean
            assert found.trials[name][trial] == pytest.approx(whole(values), rel=1e-12), name
        np.testing.assert_allclose(found.errors[trial], each["relative_error"], rtol=1e-12)
    np.testing.assert_array_equal(found.trials["relative_error"], found.errors.max(axis=1))
    np.testing.assert_allclose(worst_errors(IMAGES, candidates, truths), found.errors.max(axis=1), rtol=1e-12)


def test_metrics_of_one_image_are_its_own():
    truths, candidates = images(5, 1), images(5, 1, seed=1)
    found = batch_metrics(IMAGES, candidates, truths)
    assert found.slots.tolist() == [[0]] * 5
    for name, values in image_metrics(candidates[:, 0], truths[:, 0]).items():
        np.testing.assert_array_equal(found.trials[name], values)


@pytest.mark.parametrize(("d", "matched"), [(2, 2), (6, 4)])
def test_only_matched_images_count(d, matched):
    truths = images(3, 4)
    candidates = images(3, d, seed=1)
    candidates[:, :2] = truths[:, [3, 0]]
    found = batch_metrics(IMAGES, candidates, truths)
    assert found.errors.shape == (3, matched)
    assert (found.slots[:, 3] == 0).all()
    assert (found.slots[:, 0] == 1).all()
    if d == 2:
        np.testing.assert_array_equal(found.slots, [[1, -1, -1, 0]] * 3)
        np.testing.assert_array_equal(found.trials["mse"], 0)
        np.testing.assert_array_equal(worst_errors(IMAGES, candidates, truths), 0)
    else:
        assert (found.trials["mse"] > 0).all()


def test_one_dummy_that_is_no_number_spoils_its_trial_only():
    truths = images(2, 3)
    candidates = truths.copy()
    candidates[0, 1, 0, 0, 0] = np.nan
    found = batch_metrics(IMAGES, candidates, truths)
    assert np.isnan(found.errors).tolist() == [[False, True, False], [False] * 3]
    assert np.isnan(found.trials["mse"]).tolist() == [True, False]
    assert np.isnan(worst_errors(IMAGES, candidates, truths)).tolist() == [True, False]


# --- the order of the truth ---


def test_ordered_puts_dummies_where_their_images_are():
    truths = images(2, 3)
    slots = np.array([[2, 0, 1], [0, -1, 1]])
    candidates = images(2, 3, seed=1)
    got = ordered(candidates, slots)
    np.testing.assert_array_equal(got[0], candidates[0, [2, 0, 1]])
    np.testing.assert_array_equal(got[1, [0, 2]], candidates[1, [0, 1]])
    np.testing.assert_array_equal(got[1, 1], 0)
    assert got.shape == truths.shape


@pytest.mark.parametrize("d", [2, 3, 5])
def test_snapshots_are_ordered_as_the_candidates(d):
    slots = np.array([[1, 0, -1], [-1, 1, 0]])
    snapshots = images(2, 4, d, seed=1)
    got = ordered(snapshots, slots, axis=2)
    assert got.shape == (2, 4, 3, *SHAPE)
    for trial, step, place in itertools.product(range(2), range(4), range(3)):
        slot = slots[trial, place]
        wanted = snapshots[trial, step, slot] if slot >= 0 else np.zeros(SHAPE)
        np.testing.assert_array_equal(got[trial, step, place], wanted)


# --- batches as one picture ---


@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
def test_a_mosaic_comes_apart_again(count, lead):
    batch = images(*lead, count, seed=count)
    picture = mosaic(batch)
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    assert picture.shape == (*lead, 3 * rows, 2 * columns, 2)
    np.testing.assert_array_equal(unmosaic(picture, count), batch)
    for number in range(count):
        row, column = divmod(number, columns)
        tile = picture[..., 3 * row : 3 * row + 3, 2 * column : 2 * column + 2, :]
        np.testing.assert_array_equal(tile, batch[..., number, :, :, :])
    assert picture.sum() == pytest.approx(batch.sum())  # what is left over is black


def test_a_mosaic_of_one_is_the_image():
    batch = images(1)
    np.testing.assert_array_equal(mosaic(batch), batch[0])
