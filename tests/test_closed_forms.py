"""Closed forms and the client: an update of one step of SGD on all images is one gradient, others are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import ATTACKS, Client, InputError, Sweep, build_model, draw_params, load_dataset, make_victim, run_sweep
from jaxleak.threat.client import client_update
from tests.commands import case_id

CASES = {
    "analytic": ("mlp", {"weight_init": "torch"}, 1),
    "april": ("vit", {"depth": 1, "dim": 96}, 1),
    "spear": ("mlp", {"activation": "relu", "weight_init": "torch", "hidden": (200,)}, 4),
    "rgap": ("lenet", {"activation": "tanh", "weight_init": "torch"}, 1),
}
STEPS = (
    {"steps": 1},
    {"epochs": 1, "batch": 4, "lr": 0.1},
    {"steps": 1, "momentum": 0.9, "nesterov": True},
    {"steps": 1, "weight_decay": 0.1, "momentum": 0.5},
)
SEVERAL = (
    {"steps": 2},
    {"epochs": 1, "batch": 2},
    {"steps": 1, "batch": 2},
    {"steps": 1, "clip": 1.0},
    {"steps": 1, "optimizer": "adam"},
    {"steps": 1, "optimizer": "adamw"},
)


def sweep_of(attack: str, client: dict[str, Any]) -> Sweep:
    model, fields, batch = CASES[attack]
    settings = {key: min(value, batch) if key == "batch" else value for key, value in client.items()}
    photos = load_dataset("photos")
    victim = make_victim(model, photos, [6, 1, 41, 3][:batch], fields=fields, batch=batch, client=Client(**settings))
    return Sweep(victim=victim, attacks=(ATTACKS[attack],), seeds=1, snapshots=())


@pytest.mark.parametrize("client", STEPS, ids=case_id)
@pytest.mark.parametrize("attack", [pytest.param("rgap", marks=pytest.mark.slow), "analytic", "april", "spear"])
def test_one_step_is_read_as_a_gradient(attack, client):
    for row in run_sweep(sweep_of(attack, client), None, quiet=True).rows:
        assert row["psnr"] > 40
        assert row["label_correct"]


@pytest.mark.parametrize("client", SEVERAL, ids=case_id)
def test_other_updates_are_refused(client):
    with pytest.raises(InputError) as error:
        sweep_of("spear", client)
    assert str(error.value) == (
        "`attack` spear reads one gradient; use no local steps, or one of SGD on all images without clipping."
    )
    with pytest.raises(InputError, match=r"^`attack` analytic reads one gradient; "):
        sweep_of("analytic", {"steps": 2})


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("settings", STEPS, ids=case_id)
def test_the_gradient_behind_a_step(settings, clients):
    client, batch = Client(**settings, clients=clients), 4 * clients
    model, rng = build_model("mlp", 3, hidden=(5,)), np.random.default_rng(0)
    x, target = rng.uniform(size=(batch, 4, 4, 1)), np.eye(3)[rng.integers(3, size=batch)]
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, draw_params(model, jax.random.key(0), (4, 4, 1)))
        update, gradient = (
            client_update(made, model, params, jnp.asarray(x), jnp.asarray(target))
            for made in (client, Client(clients=clients))
        )
        assert client.shares_gradient(batch)
        for found, wanted in zip(
            *map(jax.tree.leaves, (client.gradient(update, params, batch), gradient)), strict=True
        ):
            np.testing.assert_allclose(found, wanted, atol=1e-12)
        frozen = jax.tree.map(np.zeros_like, params)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(client.gradient(frozen, params, batch)))
