"""A function of one's own as a defence: from Python and from a file, in rows, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak
from jaxleak import InputError, parse_defence
from jaxleak.threat.defences import defence_text, defend, sparse_mask
from jaxleak.threat.own_defence import OwnDefence, own_defence
from tests.commands import call, refusal

FILE = """
import jax
import jax.numpy as jnp


def halve(update):
    return jax.tree.map(lambda leaf: leaf / 2, update)


def noisy(update, key):
    keys = jax.random.split(key, len(jax.tree.leaves(update)))
    leaves, tree = jax.tree.flatten(update)
    return jax.tree.unflatten(tree, [leaf + jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)])


def defence(update):
    return {**update, "head": jax.tree.map(jnp.zeros_like, update["head"])}


defence.sparse = True
"""
UPDATE = {"conv1": {"kernel": np.arange(6.0).reshape(2, 3)}, "head": {"bias": np.ones(2)}}
KEY = jax.random.key(0)


def halve(update):
    return jax.tree.map(lambda leaf: leaf / 2, update)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_functions_of_a_file(file):
    halved = parse_defence(f"{file}:halve")
    np.testing.assert_array_equal(defend((halved,), UPDATE, KEY)["conv1"]["kernel"], UPDATE["conv1"]["kernel"] / 2)
    assert not halved.random
    assert defence_text(halved).startswith("mine.py:halve@")
    noisy = parse_defence(f"{file}:noisy")
    assert noisy.random
    first, second = (defend((noisy,), UPDATE, jax.random.key(seed))["head"]["bias"] for seed in (0, 1))
    assert not np.allclose(first, second)
    default = parse_defence(str(file))
    np.testing.assert_array_equal(sparse_mask((default,), defend((default,), UPDATE, KEY))["head"]["bias"], [0, 0])


def test_other_code_is_another_name(file):
    before = parse_defence(f"{file}:halve")
    file.write_text(FILE.replace("leaf / 2", "leaf / 3"))
    after = parse_defence(f"{file}:halve")
    assert defence_text(before) != defence_text(after)
    assert own_defence(halve).name == own_defence(halve).name


def test_a_run_and_an_attack_with_it(file, tmp_path):
    said = call(
        *("run", "--attack", "idlg", "--num-images", 1, "--seeds", 2, "--iterations", 2, "--no-figures", "--no-report"),
        *("--defence", f"{file}:halve", "--out", tmp_path / "run"),
    )
    assert said.code == 0
    rows = jaxleak.Run.open(tmp_path / "run").rows()
    assert {row["defence"].partition("@")[0] for row in rows} == {"mine.py:halve"}


def test_a_function_in_python_acts_on_what_is_shared():
    photos = jaxleak.load_dataset("photos")
    plain = jaxleak.make_victim("lenet", photos, [6], network="shared")
    defended = replace(plain, defences=(halve, parse_defence("clip:1e9")))
    assert isinstance(defended.defences[0], OwnDefence)
    assert defended.key is None
    assert "halve@" in defended.defence_name
    params = jaxleak.draw_params(plain.model, jax.random.key(0), plain.shape)
    x, target = jnp.asarray(plain.images), jnp.eye(plain.num_classes)[plain.labels]
    ours, theirs = (victim.share(params, x, target, KEY) for victim in (defended, plain))
    np.testing.assert_allclose(ours["head"]["bias"], theirs["head"]["bias"] / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda update: update["head"], "must return an update like the one it is given"),
        (lambda update: jax.tree.map(np.asarray, update), "must be written with jax.numpy"),
        (lambda update: {} if update["head"]["bias"][0] > 0 else update, "must be written with jax.numpy"),
    ],
)
def test_what_a_function_may_not_do(function, words):
    with pytest.raises(InputError, match=words):
        jax.jit(lambda update: defend((own_defence(function, "mine"),), update, KEY))(UPDATE)


def test_functions_of_other_things_are_refused(file):
    with pytest.raises(InputError, match="of an update, or of an update and a key; it takes 3 arguments"):
        own_defence(lambda update, key, more: update, "mine")
    with pytest.raises(InputError, match="has no function 'nothing'"):
        parse_defence(f"{file}:nothing")
    with pytest.raises(InputError, match="must be a tuple"):
        replace(jaxleak.make_victim("lenet", jaxleak.load_dataset("photos"), [6]), defences=halve)
    assert "`defence`" in refusal("run", "--defence", file.parent / "missing.py:f", "--out", file.parent / "run")


def test_what_needs_its_noise_is_refused(file):
    photos = jaxleak.load_dataset("photos")
    victim = jaxleak.make_victim("lenet", photos, [6], network="shared")
    with pytest.raises(InputError, match="and not what the function"):
        jaxleak.risk(victim, compared=(f"{file}:halve",))
    params = jaxleak.draw_params(victim.model, jax.random.key(0), victim.shape)
    given = replace(victim, params=params, update=params, defences=(halve,))
    with pytest.raises(InputError, match="must be the package's, whose noise is known"):
        jaxleak.audit(jaxleak.Sweep(victim=given, attacks=(jaxleak.IDLG,), seeds=2))
