"""Where trials start: every start against its definition in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.closed_forms import CLOSED_FORMS
from jaxleak.attacks.presets import DLG, IDLG, Attack
from jaxleak.attacks.starts import CLOSED, INITS, SAME_EVERY_TIME, check_init, draw_start
from jaxleak.attacks.trial import Trial
from jaxleak.errors import InputError
from jaxleak.solvers import Adam
from jaxleak.threat.victim import Victim
from tests.sweeps import Tiny
from tests.trials import job

RGB = (2, 12, 11, 3)  # two dummies
GREY = (1, 28, 28, 1)
SURROGATE = np.random.default_rng(0).uniform(2, 3, RGB[1:])  # told from everything that is drawn


def draw(init: str, shape=RGB, seed: int = 0, surrogate=SURROGATE) -> np.ndarray:
    return np.asarray(draw_start(init, jax.random.key(seed), shape, jnp.asarray(surrogate)))


# --- each start is its definition ---


def normal(image: np.ndarray) -> None:
    assert abs(image.mean()) < 5 / np.sqrt(image.size)  # five standard errors
    assert abs(image.var() - 1) < 5 * np.sqrt(2 / image.size)
    assert image.min() < -1


def uniform(image: np.ndarray) -> None:
    assert image.min() >= 0
    assert image.max() < 1
    assert abs(image.mean() - 1 / 2) < 5 / np.sqrt(12 * image.size)
    assert abs(image.var() - 1 / 12) < 5 * np.sqrt((1 / 80 - 1 / 144) / image.size)
    assert len(np.unique(image)) == image.size


def constant(*colour: float):
    def check(image: np.ndarray) -> None:
        np.testing.assert_array_equal(image, np.broadcast_to(colour, image.shape))

    return check


def tiles(side: int):
    """numpy's own tiling of the upper left corner."""

    def check(image: np.ndarray) -> None:
        tile = image[:, :side, :side]
        assert len(np.unique(tile)) == tile.size
        assert tile.min() >= 0
        assert tile.max() < 1
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                np.testing.assert_array_equal(image[:, row, column], tile[:, row % side, column % side])

    return check


def surrogate(image: np.ndarray) -> None:
    centre = np.zeros(image.shape[1:3], bool)
    centre[3:9, 2:9] = True  # of 12 rows a quarter is 3, of 11 columns 2
    for one in image:
        np.testing.assert_array_equal(one[~centre], SURROGATE[~centre])
    uniform(image[:, centre])


DEFINITIONS = {
    "normal": normal,
    "uniform": uniform,
    "black": constant(0, 0, 0),
    "white": constant(1, 1, 1),
    "red": constant(1, 0, 0),
    "green": constant(0, 1, 0),
    "blue": constant(0, 0, 1),
    "pattern-16": tiles(16),
    "pattern-8": tiles(8),
    "pattern-4": tiles(4),
    "pattern-5": tiles(5),
    "surrogate": surrogate,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_start_is_its_definition(name):
    image = draw(name)
    assert image.shape == RGB
    assert image.dtype == np.float64
    DEFINITIONS[name](image)


def test_every_start_has_a_definition_here():
    """Closed forms are no draws; they are tested with their attacks."""
    assert set(INITS) == set(DEFINITIONS) - {"pattern-5"} | set(CLOSED)
    assert set(CLOSED_FORMS) == set(CLOSED)


@pytest.mark.parametrize("side", [16, 8, 5, 4])
def test_tiles_are_cut_at_the_border(side):
    """28 is no multiple of 16, 8 or 5."""
    image = draw(f"pattern-{side}", GREY)
    assert image.shape == GREY
    tiles(side)(image)
    last = 28 % side or side
    np.testing.assert_array_equal(image[:, -last:, -last:], image[:, :last, :last])


def test_a_tile_larger_than_the_image_costs_no_more_than_the_image():
    np.testing.assert_array_equal(draw("pattern-1000000"), draw("uniform"))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_is_random_follows_the_key(name):
    again, other = draw(name), draw(name, seed=1)
    np.testing.assert_array_equal(draw(name), again)
    if name in SAME_EVERY_TIME:
        np.testing.assert_array_equal(other, again)
    else:
        assert not np.array_equal(other, again)
        assert not np.array_equal(again[0], again[1])  # nor are two dummies alike


# --- names ---


@pytest.mark.parametrize("name", [*INITS, "pattern-5", "pattern-1"])
def test_names_of_starts(name):
    check_init(name)


@pytest.mark.parametrize("name", ["pattern-0", "pattern-x", "pattern-", "pattern--4", "pattern-4.5", "pattern-²", "4"])
def test_what_is_no_start(name):
    with pytest.raises(InputError, match=r"^`start` must be one of analytic, april, black, .*; got ") as error:
        Attack(name="wrong", init=name)
    assert "\n" not in str(error.value)


def test_a_near_miss_is_named():
    with pytest.raises(InputError, match=r"got 'unifrom'\. Did you mean 'uniform'\?$"):
        check_init("unifrom")


@pytest.mark.parametrize("name", ["red", "green", "blue"])
def test_a_colour_needs_colours(name):
    message = f"^`start` {name} needs pictures with three channels; these have 1. Use black or white.$"
    with pytest.raises(InputError, match=message):
        draw(name, GREY)


# --- a trial's start, in the units of the network's input ---

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)


def started(attack: Attack, *, batch: int = 1, normalisation: Any = (MEAN, STD), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(1)
    victim = Victim(
        model=Tiny(3),
        model_name="tiny",
        dataset="small",
        split="all",
        indices=list(range(2 * batch)),
        images=rng.random((2 * batch, 12, 11, 3)),
        labels=np.zeros(2 * batch, int),
        num_classes=3,
        network="per-trial",
        batch=batch,
        normalisation=normalisation,
        surrogates=np.stack([SURROGATE, SURROGATE + 10]),
    )
    trial = Trial(attack=attack, victim=victim, threshold=1e-4)
    return np.asarray(trial.attacker.start(trial.shared(), job(slot=1, image=batch, seed=seed))["image"])


@pytest.mark.parametrize("name", ["black", "white", "uniform", "pattern-4", "surrogate"])
def test_pixels_are_brought_to_the_networks_units(name):
    attack = Attack(name=name, init=name, label="known")
    pixels, x = started(attack, normalisation=None), started(attack)
    np.testing.assert_allclose(x, (pixels - MEAN) / STD, rtol=1e-12, atol=1e-12)
    assert not np.array_equal(x, pixels)


def test_normal_starts_are_in_the_networks_units_already():
    np.testing.assert_array_equal(started(DLG), started(DLG, normalisation=None))


def test_a_batch_has_a_start_for_each_dummy_and_its_own_surrogate():
    x = started(Attack(name="s", init="surrogate", label="known"), batch=2, normalisation=None)
    assert x.shape == (2, 12, 11, 3)
    for one in x:
        np.testing.assert_array_equal(one[0], SURROGATE[0] + 10)  # of the second update
    assert not np.any(x[0, 5, 5] == x[1, 5, 5])


def test_members_of_a_group_start_apart_and_keep_their_starts():
    """A larger group begins with the starts of a smaller one."""
    pair, four = (started(Attack(name="g", label="known", solver=Adam(), group=size)) for size in (2, 4))
    assert four.shape == (4, 1, 12, 11, 3)
    np.testing.assert_array_equal(four[:2], pair)
    assert len(np.unique(four)) == four.size


def test_starts_of_seeds_differ_and_those_of_attacks_do_not():
    one = started(DLG, seed=1)
    assert not np.any(one == started(DLG, seed=2))
    np.testing.assert_array_equal(one, started(IDLG, seed=1))
