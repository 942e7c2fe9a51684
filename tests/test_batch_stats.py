"""Running statistics of BatchNorm in evaluation mode: measured by training, read from files, shared or hidden."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import InputError, make_victim
from jaxleak.data import Dataset
from jaxleak.models import ResNet, save_weights
from jaxleak.models.resnet import BasicBlock
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params
from jaxleak.threat.training import running_statistics, train_network
from jaxleak.threat.victim import Victim
from tests.sweeps import CLASSES, SHAPE
from tests.trials import KNOWN, at, compiled, flat, truth_of

MODEL = ResNet(num_classes=CLASSES, stage_sizes=(1,), block=BasicBlock, width=2, train=False, weight_init="torch")


@pytest.fixture(scope="module")
def params() -> Any:
    return draw_params(MODEL, jax.random.key(3), SHAPE)


@pytest.fixture(scope="module")
def stats() -> Any:
    """Far from 0 and 1."""
    rng = np.random.default_rng(0)
    template = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))["batch_stats"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape)), template)


def victim_of(data: Dataset, params: Any, **changes) -> Victim:
    return replace(make_victim(MODEL, data, [0], network="shared"), params=params, **changes)


def test_the_update_and_the_attack_use_the_running_statistics(data, params, stats):
    victim = victim_of(data, params, batch_stats=stats)
    target = jax.nn.one_hot(victim.labels, CLASSES, dtype=float)

    def loss(p):
        logits: Any = MODEL.apply({"params": p, "batch_stats": stats}, truth_of(victim))
        return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), axis=-1))

    gradient = compiled(jax.grad(loss), params)
    shared = compiled(lambda: victim.share(params, jnp.asarray(truth_of(victim)), target, jax.random.key(0)))
    np.testing.assert_allclose(flat(shared), flat(gradient), rtol=1e-10)
    ((value, _),) = at(KNOWN, victim, truth_of(victim))
    assert value < 1e-25


def test_an_attacker_without_them_works_with_those_of_a_new_network(data, params, stats):
    victim = victim_of(data, params, batch_stats=stats, knows_statistics=False)
    target = jax.nn.one_hot(victim.labels, CLASSES, dtype=float)
    ((value, _),) = at(KNOWN, victim, truth_of(victim))

    def distance():
        x = jnp.asarray(truth_of(victim))
        difference = flat_of(victim.share(params, x, target, jax.random.key(0))) - flat_of(
            loss_gradient(MODEL, params, x, target)
        )
        return jnp.sum(difference**2)

    assert value == pytest.approx(float(compiled(distance)), rel=1e-9)
    assert value > 1e-6


def flat_of(tree: Any) -> Any:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_who_knows_what_is_a_setting(data, params, stats):
    known = victim_of(data, params, batch_stats=stats)
    several = [victim_of(data, params), known, replace(known, knows_statistics=False)]
    settings = [str(victim.settings()) for victim in several]
    assert len(set(settings)) == 3


def test_files_bring_them(data, params, stats, tmp_path):
    save_weights(tmp_path / "w.safetensors", MODEL, params, SHAPE, stats)
    victim = make_victim(MODEL, data, [0], network="shared", weights=tmp_path / "w.safetensors")
    np.testing.assert_allclose(flat(victim.batch_stats), flat(stats), rtol=1e-6)


def test_they_are_of_one_network(data, stats):
    with pytest.raises(InputError, match="`batch_stats` are of one network and need `network` shared"):
        replace(make_victim(MODEL, data, [0]), batch_stats=stats)


def test_they_are_means_and_variances_of_the_layers_inputs(data, params):
    victim = victim_of(data, params)
    found = running_statistics(victim.in_training(), params, data, list(range(6)), batch=3)
    parts = []
    for indices in ([0, 1, 2], [3, 4, 5]):
        pixels = jnp.asarray(data.images(indices)[0], float)
        kernel = params["conv1"]["kernel"]
        inputs = jax.lax.conv_general_dilated(
            pixels, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        parts.append((inputs.mean(axis=(0, 1, 2)), inputs.var(axis=(0, 1, 2))))
    mean, var = (np.mean([np.asarray(part[i]) for part in parts], axis=0) for i in (0, 1))
    np.testing.assert_allclose(found["bn1"]["mean"], mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["bn1"]["var"], var, rtol=1e-9)


def test_training_learns_them(data, params):
    victim = make_victim(MODEL, data, [0], network="shared")
    trained = train_network(victim, params, data, steps=1, batch=4)
    layers = trained.batch_stats
    assert layers is not None
    assert set(layers) == {"bn1", "layer1.0"}
    measured = victim.in_evaluation(layers)
    assert measured.attacker_model is not MODEL
    assert 0 <= trained.accuracy <= 1 or np.isnan(trained.accuracy)
    assert (flat(layers) != 0).all()


def test_networks_of_several_victims_have_none(data):
    with pytest.raises(InputError, match="`trained_steps` of a network whose BatchNorm is in evaluation mode"):
        make_victim(MODEL, data, [0, 1], network="per-image", trained_steps=1)
