"""The language model against torch, and what it refuses."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.distances import squared_l2
from jaxleak.errors import InputError
from jaxleak.models import Transformer, build_model, load_weights, save_weights
from jaxleak.threat.loss import loss_gradient
from tests.fixtures import quick_jit
from tests.oracles.parity import load, norms_of, relative_error, some_variables, torch_tensors
from tests.oracles.require_torch import require_torch

SIZE, LENGTH, BATCH = 7, 6, 2
SMALL = {"dim": 6, "heads": 2, "depth": 2, "mlp_ratio": 1.5}


@pytest.mark.torch
@pytest.mark.parametrize("task", ["causal", "masked"])
def test_transformer_equals_torch(task):
    """Logits, loss, the parameters' gradient with that of the embeddings, and the attack's objective with its slope."""
    torch = require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.transformer")
    model = Transformer(SIZE, task=task, **SMALL)
    params = some_variables(model, (LENGTH,))["params"]
    net = oracle.Transformer(SIZE, LENGTH, 6, 2, 2, 9, task == "causal")
    net = load(net, torch_tensors(model, params, (LENGTH,)))
    rng = np.random.default_rng(5)
    ids = rng.integers(1, SIZE, (BATCH, LENGTH))
    _, predicted = model.places(LENGTH)
    target = jax.nn.one_hot(ids[:, predicted], SIZE)

    names, tensors = zip(*net.named_parameters(), strict=True)
    vectors = net.vectors(torch.from_numpy(ids))
    logits = net(vectors)
    wanted = torch.autograd.grad(net.loss(logits, torch.from_numpy(ids)), tensors)
    shared = dict(zip(names, (gradient.numpy() for gradient in wanted), strict=True))
    start = torch.from_numpy(rng.normal(size=vectors.shape)).requires_grad_()
    others = [name for name in names if name != "embed.weight"]
    loss = net.loss(net(start), torch.from_numpy(ids))
    dummy = torch.autograd.grad(loss, [tensor for name, tensor in net.named_parameters() if name in others],
                                create_graph=True)  # fmt: skip
    norms = norms_of(shared)
    apart = sum(
        (((found - torch.from_numpy(shared[name])) / norms[name]) ** 2).sum()
        for name, found in zip(others, dummy, strict=True)
    )
    (slope,) = torch.autograd.grad(apart, start)

    @quick_jit
    def ours(params, ids, start):
        update = loss_gradient(model, params, ids, target)
        paths = jax.tree.map_with_path(lambda path, _: ".".join(key.key for key in path), params)
        sizes = jax.tree.map(lambda path: norms[path.replace("kernel", "weight").replace("scale", "weight")],
                             {**paths, "embed": {"embedding": "embed.weight"}})  # fmt: skip

        def objective(start):
            pair = [loss_gradient(model, params, start, target), update]
            parts = [{name: leaf for name, leaf in tree.items() if name != "embed"} for tree in (*pair, sizes)]
            scaled = [jax.tree.map(jnp.divide, part, parts[2]) for part in parts[:2]]
            return squared_l2(*scaled)

        return model.apply({"params": params}, ids), update, jax.value_and_grad(objective)(start)

    outputs, update, (value, gradient) = ours(params, ids.astype(float), start.detach().numpy())
    assert outputs.shape == (BATCH, len(predicted), SIZE)
    assert relative_error(np.asarray(outputs), logits.detach().numpy()) < 1e-9
    found = torch_tensors(model, update, (LENGTH,))
    assert set(found) == set(shared)
    for name, wanted in shared.items():
        assert np.linalg.norm(found[name] - wanted) < 1e-9 * norms[name], name
    assert float(value) == pytest.approx(apart.item(), rel=1e-9)
    assert relative_error(np.asarray(gradient), slope.numpy()) < 1e-9


def test_a_causal_network_does_not_see_what_follows():
    model = Transformer(SIZE, **SMALL)
    params = some_variables(model, (LENGTH,))["params"]
    texts = np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5, 4]], float)
    outputs = np.asarray(quick_jit(lambda p, x: model.apply({"params": p}, x))(params, texts))
    np.testing.assert_array_equal(outputs[0, :3], outputs[1, :3])
    assert np.all(np.any(outputs[0, 3:] != outputs[1, 3:], axis=-1))


def test_hidden_tokens_are_not_seen():
    model = Transformer(SIZE, task="masked", **SMALL)
    params = some_variables(model, (12,))["params"]
    texts = np.tile(np.arange(12.0) % SIZE, (2, 1))
    texts[1, [3, 10]] = 1, 2
    outputs = np.asarray(quick_jit(lambda p, x: model.apply({"params": p}, x))(params, texts))
    assert outputs.shape == (2, 2, SIZE)
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_weights_are_written_and_read(tmp_path):
    model = Transformer(SIZE, **SMALL)
    params = some_variables(model, (LENGTH,))["params"]
    save_weights(tmp_path / "weights.safetensors", model, params, (LENGTH,))
    jax.tree.map(
        np.testing.assert_array_equal, load_weights(tmp_path / "weights.safetensors", model, (LENGTH,)), params
    )


@pytest.mark.parametrize("weight_init", ["torch", "uniform", "uniform-weights", "flax"])
def test_initialisations(weight_init):
    model = Transformer(50, dim=64, depth=1, weight_init=weight_init)
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 16)))["params"]
    drawn = 12**-0.5 if weight_init.startswith("uniform") else 0.02
    assert np.std(params["embed"]["embedding"]) == pytest.approx(drawn, rel=0.05)
    assert np.std(params["pos_embed"]) == pytest.approx(drawn, rel=0.1)
    assert np.std(params["head"]["kernel"]) == pytest.approx(1 / 8 if weight_init == "flax" else drawn, rel=0.1)
    assert (np.ptp(params["norm"]["scale"]) > 0) == (weight_init == "uniform")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"heads": 5}, r"^`heads` must divide `dim`; got 5 heads for 64\.$"),
        ({"task": "bert"}, r"^`task` must be one of causal, masked; got 'bert'"),
        ({"depth": 0}, r"^`depth` must be above 0; got 0\.$"),
        ({"weight_init": "gpt2"}, r"^`weight_init` must be one of flax, torch, uniform, uniform-weights; got 'gpt2'"),
    ],
)
def test_wrong_fields(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("transformer", SIZE, **fields)


@pytest.mark.parametrize(("task", "length"), [("causal", 1), ("masked", 3)])
def test_short_texts_are_refused(task, length):
    with pytest.raises(InputError, match=f"^`length` must be at least {length + 1} for a {task} network; got {length}"):
        Transformer(SIZE, task=task).places(length)
