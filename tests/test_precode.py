"""PRECODE: the network's gradient against PyTorch, the noise that an update shows, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak
from jaxleak.kernels.outer import Outer
from jaxleak.models import MODELS, build_model, load_weights, save_weights
from jaxleak.models.bottleneck import Bottleneck
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.observe import observe
from jaxleak.threat.precode import noise_of, with_noise
from tests.sweeps import Tiny
from tests.trials import flat, job, trial_of

SHAPE = (32, 32, 3)
ATTACK = replace(jaxleak.IDLG, label="known", init="uniform")


@pytest.fixture(scope="module")
def photos():
    return jaxleak.load_dataset("photos")


def is_outer(leaf) -> bool:
    return isinstance(leaf, Outer)


def drawn(images: int, size: int = 5, body: str = "lenet", **fields):
    model = Bottleneck(build_model(body, 4, **fields), size=size, beta=0.1)
    keys = jax.random.split(jax.random.key(3), 3)
    params = jax.tree.map(lambda leaf: leaf.astype(float), model.init(keys[0], jnp.zeros((1, *SHAPE)))["params"])
    x, noise = jax.random.uniform(keys[1], (images, *SHAPE), float), jax.random.normal(keys[2], (images, size), float)
    return model, params, x, jnp.eye(4, dtype=float)[jnp.arange(images)], noise


def test_gradient_is_pytorchs():
    torch = pytest.importorskip("torch")
    model, params, x, target, noise = drawn(2)
    of = {
        name: {
            "weight": torch.tensor(np.moveaxis(np.asarray(layer["kernel"]), (-1, -2), (0, 1)), requires_grad=True),
            "bias": torch.tensor(np.asarray(layer["bias"]), requires_grad=True),
        }
        for name, layer in params.items()
    }
    z = torch.tensor(np.moveaxis(np.asarray(x), -1, 1))
    for number, stride in enumerate((2, 2, 1), start=1):
        layer = of[f"conv{number}"]
        z = torch.sigmoid(torch.nn.functional.conv2d(z, layer["weight"], layer["bias"], stride=stride, padding=2))
    features = z.permute(0, 2, 3, 1).flatten(1)
    mean, log_variance = torch.nn.functional.linear(features, *of["encode"].values()).chunk(2, dim=1)
    sample = mean + torch.tensor(np.asarray(noise)) * torch.exp(log_variance / 2)
    decoded = torch.nn.functional.linear(sample, *of["decode"].values())
    outputs = torch.nn.functional.linear(decoded, *of["head"].values())
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, torch.exp(log_variance / 2)), normal(0.0, 1.0))
    loss = torch.nn.functional.cross_entropy(outputs, torch.arange(2)) + 0.1 * divergence.sum(1).mean()
    loss.backward()
    ours = loss_gradient(with_noise(model, noise), params, x, target)
    for name, layer in of.items():
        kernel = np.moveaxis(layer["weight"].grad.numpy(), (0, 1), (-1, -2))
        np.testing.assert_allclose(ours[name]["kernel"], kernel, rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(ours[name]["bias"], layer["bias"].grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("body", ["lenet", "mlp", pytest.param("vit", marks=pytest.mark.slow)])
def test_the_attackers_gradient_is_the_clients(body):
    model, params, x, target, noise = drawn(2, body=body)
    called = with_noise(model, noise)
    client, attacker = loss_gradient(called, params, x, target), observe(called, params, x, target).gradient
    built = jax.tree.map(lambda leaf: leaf.build() if is_outer(leaf) else leaf, attacker, is_leaf=is_outer)
    np.testing.assert_allclose(flat(built), flat(client), rtol=1e-9, atol=1e-12)


def test_every_model_of_the_package_takes_it():
    for name in MODELS.keys() - {"transformer"}:
        size = (299, 299, 3) if name == "inception3" else SHAPE
        model = Bottleneck(build_model(name, 4), size=5)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size)))["params"]
        assert shapes["encode"]["kernel"].shape[1] == 10, name
        assert shapes["head"]["kernel"].shape == (shapes["decode"]["kernel"].shape[1], 4), name


def test_one_images_update_shows_its_noise():
    model, params, x, target, noise = drawn(1)
    update = loss_gradient(with_noise(model, noise), params, x, target)
    np.testing.assert_allclose(noise_of(params, update), noise, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
def test_who_knows_of_the_noise_explains_the_update_at_the_truth(photos, batch):
    victim = jaxleak.make_victim("lenet", photos, [0, 1], batch=batch, defences=(jaxleak.parse_defence("precode:8"),))
    for knows in (False, True):
        trial = trial_of(replace(ATTACK, knows_defence=knows), victim)
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        parts = trial.attacker.start(shared, job(), problem)
        truth = {**parts, "image": victim.to_input(problem.truth)}
        assert set(parts) == ({"image", "noise"} if knows and batch > 1 else {"image"})
        if "noise" in parts:
            key = jax.random.fold_in(trial._defence_key(shared, job()), 0)
            truth["noise"] = jax.random.normal(key, parts["noise"].shape, float)
        left = trial.attacker.values(shared, problem, truth).published / problem.norm2
        assert left < 1e-20 if knows else left > 1e-3


@pytest.mark.slow
def test_who_knows_of_the_noise_gets_the_image(photos):
    victim = jaxleak.make_victim("lenet", photos, [0], defences=(jaxleak.parse_defence("precode:64"),))
    attack = replace(ATTACK, name="plain", objective="cosine", tv=1e-6, stop_objective=0.0, max_evaluations=500)
    attacks = (attack, replace(attack, name="told", knows_defence=True))
    found = jaxleak.run_sweep(jaxleak.Sweep(victim=victim, attacks=attacks, seeds=2, snapshots=()))
    psnr = {name: max(row["psnr"] for row in found.rows if row["attack"] == name) for name in ("plain", "told")}
    assert psnr["plain"] < 8
    assert psnr["told"] > 15


def test_weights_are_read_and_written(tmp_path):
    model, params, *_ = drawn(1)
    save_weights(tmp_path / "w.safetensors", model, params, SHAPE)
    read = load_weights(tmp_path / "w.safetensors", model, SHAPE)
    np.testing.assert_array_equal(flat(read), flat(params).astype(np.float32))


@pytest.mark.parametrize(
    ("defences", "more", "says"),
    [
        ("precode", {"client": jaxleak.Client(steps=2)}, "`defence` precode draws noise for one pass"),
        ("dp-sgd:1:0.1 precode", {}, "`defence` dp-sgd and precode exclude each other"),
        ("precode:8 precode:16", {}, "`defence` precode is one layer of the network; name it once"),
        ("precode:-1", {}, "`defence` 'precode:-1': `size` must"),
        ("precode:8:-1", {}, "`defence` 'precode:8:-1': `beta` must"),
    ],
)
def test_refusals(photos, defences, more, says):
    def made():
        parsed = tuple(map(jaxleak.parse_defence, defences.split()))
        return jaxleak.make_victim("lenet", photos, [0], defences=parsed, **more)

    with pytest.raises(jaxleak.InputError, match=f"^{says}"):
        made()


def test_it_is_for_models_of_the_package_made_with_it(photos):
    precode = (jaxleak.parse_defence("precode"),)
    with pytest.raises(jaxleak.InputError, match=r"^`defence` precode is for models of the package"):
        jaxleak.make_victim(Tiny(num_classes=photos.num_classes), photos, [0], defences=precode)
    with pytest.raises(jaxleak.InputError, match="changes the network, whose noise only the client knows"):
        replace(jaxleak.make_victim("lenet", photos, [0]), defences=precode)
