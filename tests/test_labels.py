"""Label strategies against their definitions, and what they find in real gradients."""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.labels import LABEL_STRATEGIES, class_gradient, head_gradient, idlg_label, probe_images, read_bits
from jaxleak.data import load_dataset
from jaxleak.errors import InputError
from jaxleak.models import LeNet
from jaxleak.results.metrics import labels_right
from jaxleak.threat.loss import BinaryCrossEntropy, CrossEntropy, loss_gradient
from jaxleak.threat.network import draw_params
from tests.fixtures import quick_jit
from tests.oracles.numpy_labels import STRATEGIES

PREPARED = Path(os.environ.get("JAXLEAK_DATA_DIR") or Path(__file__).parent.parent.parent / "shared" / "data" / "tfds")
READERS: dict[str, Any] = {name: rule.read for name, rule in LABEL_STRATEGIES.items() if rule.read is not None}
ONCE = ("idlg", "bias", "row-minima")  # each class at most once


def random_case(rng, classes: int, count: int, kind: str):
    """A made-up gradient of the head, in float64, and outputs for the attacker's own images.

    `kind` "batch" is p - [y = k] for random p, with more or less certain networks; "noise" follows no rule.
    """
    logits = rng.normal(size=(4, classes)) * rng.choice([0.1, 2.0])
    inputs = rng.uniform(size=(count, 6)) * rng.choice([-1, 1], size=6)
    if kind == "noise":
        slopes = rng.normal(size=(count, classes))
    else:
        outputs = logits[rng.integers(4, size=count)] + 0.3 * rng.normal(size=(count, classes))
        slopes = np.asarray(jax.nn.softmax(outputs)) - np.eye(classes)[rng.integers(classes, size=count)]
    return inputs.T @ slopes / count, slopes.mean(axis=0), logits


def as_update(kernel, bias):
    return {"zebra": {"kernel": -kernel, "bias": -bias}, "head": {"kernel": jnp.asarray(kernel), "bias": bias}}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("kind", ["batch", "noise"])
@pytest.mark.parametrize("count", [1, 4])
def test_strategies_equal_their_definitions(name, kind, count):
    """Thirty updates at once, under jit and vmap, beside one at a time in plain Python."""
    rng = np.random.default_rng(count)
    cases = [random_case(rng, 5, count, kind) for _ in range(30)]
    if name == "counts":  # its oracle needs room for every negative class
        cases = [case for case in cases if (case[1] < 0).sum() <= count]
    read = partial(READERS[name], count=count)
    kernels, biases, logits = (jnp.asarray(np.stack(arrays)) for arrays in zip(*cases, strict=True))
    together = jax.jit(jax.vmap(lambda update, own: read(update, logits=own)))(as_update(kernels, biases), logits)
    assert together.shape == (len(cases), count)
    assert jnp.issubdtype(together.dtype, jnp.integer)
    assert len(cases) >= 3
    for found, case in zip(np.asarray(together), cases, strict=True):
        kernel, bias, own = case
        assert Counter(found.tolist()) == Counter(STRATEGIES[name](kernel, bias, count, own))


def test_the_registry_is_what_the_oracles_cover():
    assert set(READERS) == set(STRATEGIES)
    assert set(LABEL_STRATEGIES) - set(READERS) == {"joint", "known", "text"}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_together_equals_one_by_one(name):
    cases = [random_case(np.random.default_rng(seed), 7, 6, "batch") for seed in range(8)]
    read = jax.jit(lambda update, own: READERS[name](update, 6, own))
    alone = [read(as_update(kernel, bias), own) for kernel, bias, own in cases]
    kernels, biases, logits = (np.stack(arrays) for arrays in zip(*cases, strict=True))
    together = jax.vmap(read)(as_update(kernels, biases), logits)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"counts"}))
def test_a_multiple_of_a_gradient_gives_the_same_labels(name):
    """As a weight difference is one. `counts` alone needs the gradient's units."""
    kernel, bias, own = random_case(np.random.default_rng(0), 7, 6, "batch")
    read = READERS[name]
    np.testing.assert_array_equal(
        read(as_update(kernel, bias), 6, own), read(as_update(0.01 * kernel, 0.01 * bias), 6, own)
    )


def test_counts_with_the_true_expectation_are_exact():
    """Where the attacker's outputs are the private images', every multiset of labels is found, whatever p."""
    read = jax.jit(lambda bias, own: READERS["counts"]({"head": {"bias": bias}}, 8, own))
    for seed in range(50):
        rng = np.random.default_rng(seed)
        logits, labels = 3 * rng.normal(size=(8, 5)), rng.integers(5, size=8)
        bias = (np.asarray(jax.nn.softmax(logits)) - np.eye(5)[labels]).mean(axis=0)
        assert Counter(read(bias, logits).tolist()) == Counter(labels.tolist())


def test_negative_classes_are_always_among_the_counts():
    """They are in the batch, even where the attacker's images say that they are not."""
    bias = jnp.array([-0.01, 0.3, -0.4, 0.11])
    own = jnp.array([[-30.0, 0.0, 0.0, 0.0]])  # class 0 is not expected at all
    for name in ("counts", "counts-published", "unique"):
        found = READERS[name]({"head": {"bias": bias}}, 4, own)
        assert {0, 2} <= set(found.tolist())
        # More of them than labels, as noise may leave: the most negative.
        np.testing.assert_array_equal(READERS[name]({"head": {"bias": bias}}, 1, own), [2])
    # A slope of exactly 0 proves nothing.
    flat = {"head": {"bias": jnp.array([-0.5, 0.0, 0.5])}}
    np.testing.assert_array_equal(READERS["counts-published"](flat, 2, own), [0, 0])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_update_of_zeros_gives_labels_all_the_same(name):
    found = READERS[name](as_update(np.zeros((6, 5)), np.zeros(5)), 3, jnp.zeros((2, 5)))
    assert found.shape == (3,)
    assert ((found >= 0) & (found < 5)).all()


@pytest.mark.parametrize("name", ONCE)
def test_more_labels_than_classes_are_refused(name):
    update = as_update(np.zeros((6, 5)), np.zeros(5))
    READERS[name](update, 5, jnp.zeros((1, 5)))
    with pytest.raises(InputError, match=r"^`label` strategies .* got 6 images and 5 classes\. Use label"):
        READERS[name](update, 6, jnp.zeros((1, 5)))


def test_missing_tensors_are_named():
    with pytest.raises(InputError, match=r"^`label` other than joint.* named 'head'; the model has fc\.$"):
        head_gradient({"fc": {}}, "kernel")
    with pytest.raises(InputError, match=r"^this `label` needs a head with a bias; the model's has kernel"):
        READERS["counts"]({"head": {"kernel": jnp.ones((2, 3))}}, 1, jnp.zeros((1, 3)))


def test_one_output_is_read_as_two_classes():
    """Binary cross-entropy of one logit o: its yes and its no are the classes of softmax over (0, o)."""
    rng = np.random.default_rng(0)
    logits, kernel, bias = rng.normal(size=(5, 1)), rng.normal(size=(3, 1)), rng.normal(size=1)
    yes = 1 / (1 + np.exp(-logits))
    update = {"head": {"kernel": kernel, "bias": bias}}
    as_if, outputs = class_gradient(update, jnp.asarray(logits), BinaryCrossEntropy(), 4)
    np.testing.assert_allclose(jax.nn.softmax(outputs), np.hstack([1 - yes, yes]), rtol=1e-12)
    np.testing.assert_allclose(as_if["head"]["kernel"], np.hstack([-kernel, kernel]))
    np.testing.assert_allclose(as_if["head"]["bias"], [-bias[0], bias[0]])
    several = {"head": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}}
    two = rng.normal(size=(5, 2))
    as_if, outputs = class_gradient(several, jnp.asarray(two), BinaryCrossEntropy(), 4)
    for name, leaf in several["head"].items():  # the mean is over both outputs too
        np.testing.assert_allclose(as_if["head"][name], 2 * leaf, rtol=1e-12)
    np.testing.assert_array_equal(outputs, two)


def test_one_yes_or_no_is_a_slope_below_0():
    """Of row sums by iDLG's rule, of the bias by the bias's; a slope of 0 is a no."""
    update = {"head": {"kernel": jnp.array([[-1.0, 2.0, 0.5], [-1.0, 1.0, -0.5]]), "bias": jnp.array([1.0, -1.0, 0.0])}}
    read = {name: read_bits(LABEL_STRATEGIES[name], update).tolist() for name in ("idlg", "bias")}
    assert read == {"idlg": [[1, 0, 0]], "bias": [[0, 1, 0]]}


def test_one_strategy_looks_at_outputs():
    assert [name for name, rule in LABEL_STRATEGIES.items() if rule.needs_network] == ["counts"]
    assert len(set(LABEL_STRATEGIES.values())) > 3  # they can be keys


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_smoothed_labels_are_read_as_plain_ones(reduction):
    """g = pbar - (1 - e) c / N - e / k, in units of the loss, becomes pbar - c / N where pbar is known."""
    rng, smoothing, images = np.random.default_rng(1), 0.2, 4
    logits, labels = rng.normal(size=(6, 5)), np.array([0, 0, 3, 4])
    expected, shares = np.mean(jax.nn.softmax(logits), axis=0), np.bincount(labels, minlength=5) / images
    bias = expected - (1 - smoothing) * shares - smoothing / 5
    loss, unit = CrossEntropy(smoothing=smoothing, reduction=reduction), images if reduction == "sum" else 1
    update = {"first": {}, "head": {"kernel": np.ones((3, 5)) * unit, "bias": bias * unit}}
    as_if, outputs = class_gradient(update, jnp.asarray(logits), loss, images)
    np.testing.assert_allclose(as_if["head"]["bias"], expected - shares, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(as_if["head"]["kernel"], 1)
    np.testing.assert_array_equal(outputs, logits)
    kernel_alone, _ = class_gradient({"head": {"kernel": update["head"]["kernel"]}}, jnp.asarray(logits), loss, images)
    np.testing.assert_allclose(kernel_alone["head"]["kernel"], 1)
    unread, _ = class_gradient(update, jnp.zeros((0, 5)), loss, images)  # by a rule that looks at no outputs
    np.testing.assert_allclose(unread["head"]["bias"], expected - (1 - smoothing) * shares, rtol=1e-9, atol=1e-12)


# --- how many are right ---


def test_labels_right_counts_a_common_multiset():
    found = np.array([[3, 3, 1, 0], [3, 3, 3, 3], [9, 8, 7, 6], [2, 1, 3, 3]])
    true = np.array([[0, 1, 3, 5], [3, 1, 3, 0], [0, 0, 0, 0], [1, 2, 3, 3]])
    np.testing.assert_array_equal(labels_right(found, true), [3, 2, 0, 4])
    np.testing.assert_array_equal(labels_right(found.reshape(2, 2, 4), true.reshape(2, 2, 4)), [[3, 2], [0, 4]])
    assert labels_right(found[0], true[0]) == 3


def test_labels_right_equals_counters():
    rng = np.random.default_rng(0)
    found, true = rng.integers(6, size=(2, 40, 5))
    wanted = [(Counter(f.tolist()) & Counter(t.tolist())).total() for f, t in zip(found, true, strict=True)]
    np.testing.assert_array_equal(labels_right(found, true), wanted)


# --- real gradients ---


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (7, 5, 2), (1, 1, 1)])
def test_probes_are_images_and_differ(shape):
    probes = probe_images(jax.random.key(0), shape)
    assert probes.shape == (32, *shape)
    for axis in (1, 2):  # from one colour to another in either direction
        assert np.ptp(probes, axis=axis).max() > 0.5 or shape[axis - 1] == 1
        steps = np.diff(probes, axis=axis)
        assert np.all(np.all(steps >= -1e-12, axis=axis) | np.all(steps <= 1e-12, axis=axis))
    assert probes.dtype == np.float64
    assert 0 <= probes.min() < 0.4
    assert 0.6 < probes.max() <= 1
    assert len(np.unique(np.asarray(probes).reshape(len(probes), -1), axis=0)) == len(probes)
    other = probe_images(jax.random.key(1), shape)
    assert (probes != other).any(axis=(1, 2, 3)).all()
    if shape[0] == 32:  # smooth: neighbouring pixels are alike
        assert np.abs(np.diff(probes, axis=1)).max() < 0.1


def reader(model: LeNet, names, count: int, shape):
    """For a network's key, images and labels: what each strategy finds."""

    def read(key, x, y):
        drawing, probing = jax.random.split(key)
        params = draw_params(model, drawing, shape)
        update = loss_gradient(model, params, x, jax.nn.one_hot(y, model.num_classes))
        logits: Any = model.apply({"params": params}, probe_images(probing, shape))
        return {name: READERS[name](update, count, logits) for name in names}

    return quick_jit(read)


def share_right(weight_init: str, names, batches, classes: int):
    """Share of the labels and of the whole batches that each strategy finds, with a fresh network for each batch."""
    x, y = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    count = y.shape[1]
    read = reader(LeNet(num_classes=classes, weight_init=weight_init), names, count, x.shape[2:])
    found = [read(jax.random.key(i), x[i], y[i]) for i in range(len(x))]
    right = {name: labels_right(np.stack([one[name] for one in found]), y) for name in names}
    return {name: (some.mean() / count, (some == count).mean()) for name, some in right.items()}


def photo_batches(batches: int, count: int):
    """Batches of the embedded photos, with labels from a hundred classes at random."""
    photos = load_dataset("photos")
    rng = np.random.default_rng(0)
    drawn = [rng.choice(len(photos), count, replace=False) for _ in range(batches)]
    return [(photos.images(some.tolist())[0], rng.integers(100, size=count)) for some in drawn]


@pytest.mark.parametrize("weight_init", ["uniform", "torch"])
def test_one_label_is_right_behind_sigmoids(weight_init):
    every = sorted(STRATEGIES)
    shares = share_right(weight_init, every, photo_batches(12, 1), 100)
    assert shares == dict.fromkeys(every, (1, 1))


@pytest.mark.parametrize(("weight_init", "least"), [("uniform", 0.8), ("torch", 1)])
def test_repeated_labels_of_photos_are_counted(weight_init, least):
    """Batches of 8 of the ten classes as they are: most have a class twice."""
    photos = load_dataset("photos")
    drawn = [np.random.default_rng(seed).choice(len(photos), 8, replace=False).tolist() for seed in range(25)]
    batches = [photos.images(some) for some in drawn]
    assert np.mean([len(set(y.tolist())) < 8 for _, y in batches]) > 0.8
    shares = share_right(weight_init, ["counts", "counts-published", "unique", "bias"], batches, 10)
    assert shares["counts"][0] >= 0.97
    assert shares["counts"][1] >= least
    for name in ("counts-published", "unique", "bias"):
        assert shares[name][1] < 0.5, name


@pytest.fixture(scope="module")
def cifar100_batches(tmp_path_factory):
    """200 batches of 8 images of the train split."""
    if not (PREPARED / "cifar100").is_dir():
        pytest.skip("cifar100 is not prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        cifar100 = load_dataset("cifar100", data_dir=PREPARED)
        drawn = np.random.default_rng(0).choice(len(cifar100), (200, 8), replace=False)
        x, y = cifar100.images(drawn.ravel().tolist())
    return list(zip(x.reshape(200, 8, *x.shape[1:]), y.reshape(200, 8), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("weight_init", "labels", "whole"), [("uniform", 0.98, 0.97), ("torch", 0.999, 0.99)])
def test_batches_of_cifar100(weight_init, labels, whole, cifar100_batches):
    """A fresh network for each batch; the published counts find 98 % of the labels with U(-0.5, 0.5)."""
    assert np.mean([len(set(y.tolist())) < 8 for _, y in cifar100_batches]) > 0.15
    shares = share_right(weight_init, ["counts", "counts-published"], cifar100_batches, 100)
    assert shares["counts"][0] >= labels
    assert shares["counts"][1] >= whole
    assert shares["counts"] >= shares["counts-published"]


def test_one_label_alone_equals_one_of_a_batch_of_one():
    kernel, bias, own = random_case(np.random.default_rng(3), 9, 1, "batch")
    update = as_update(kernel, bias)
    assert READERS["idlg"](update, 1, own) == idlg_label(update)
