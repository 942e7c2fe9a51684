"""The shared update, the objectives, their scales and other terms, against torch's numbers and their formulas; labels
read from the update."""

import importlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import one_hot, softmax

from jaxleak.attacks.distances import cosine_distance, squared_l2, squared_norm
from jaxleak.attacks.labels import bias_labels, head_gradient, idlg_label
from jaxleak.attacks.layer_weights import check_layers, parse_layer
from jaxleak.attacks.objectives import (
    OBJECTIVES,
    SCALES,
    label_distance,
    scale_factors,
    scaled,
    share_left,
    statistics_distance,
)
from jaxleak.errors import InputError
from jaxleak.kernels.outer import Outer
from jaxleak.models import LeNet, ResNet
from jaxleak.models.resnet import BasicBlock
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.threat.loss import cross_entropy, loss_gradient
from jaxleak.threat.observe import Moments, observe
from tests.fixtures import quick_jit
from tests.oracles.cases import lenet_cases, lenet_shapes, to_nchw, to_nhwc
from tests.oracles.parity import load
from tests.oracles.require_torch import require_torch


def relative_error(got, wanted):
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


class Case:
    """A golden LeNet case, its update by jaxleak, and one compiled objective for both attacks."""

    def __init__(self, case):
        self.case, self.golden = case, case.golden
        self.model = LeNet(num_classes=case.num_classes)
        self.params = from_torch(self.model, case.state_dict, case.image.shape[1:])
        self.label = one_hot(jnp.array([case.label]), case.num_classes)

        def update(image, target):
            return loss_gradient(self.model, self.params, image, target)

        def objective(image, logits, fixed, shared):
            target = jnp.where(fixed, self.label, softmax(logits))
            return squared_l2(update(image, target), shared)

        self.update = quick_jit(update)(case.image, self.label)
        compiled = quick_jit(jax.value_and_grad(objective, (0, 1)))
        self.objective = lambda image, logits, fixed: compiled(image, logits, fixed, self.update)

    def __str__(self):
        return self.case.name


@pytest.fixture(scope="module", params=lenet_cases(), ids=str)
def case(request):
    return Case(request.param)


def test_update_equals_torch(case):
    update = to_torch(case.model, case.update, case.case.image.shape[1:])
    assert set(update) == set(case.case.state_dict)
    for name, wanted in case.case.update.items():
        assert relative_error(update[name], wanted) < 1e-9, name


def test_dlg_objective_and_gradient_equal_torch(case):
    value, (image, logits) = case.objective(case.case.candidate_image, case.case.candidate_logits, False)
    assert float(value) == pytest.approx(float(case.golden["dlg/objective"]), rel=1e-9)
    assert relative_error(image, case.golden["dlg/gradient_image"]) < 1e-9
    assert relative_error(logits, case.golden["dlg/gradient_logits"]) < 1e-9


def test_idlg_objective_and_gradient_equal_torch(case):
    value, (image, _) = case.objective(case.case.candidate_image, case.case.candidate_logits, True)
    assert float(value) == pytest.approx(float(case.golden["idlg/objective"]), rel=1e-9)
    assert relative_error(image, case.golden["idlg/gradient_image"]) < 1e-9


def test_idlg_label_equals_torch(case):
    assert int(idlg_label(case.update)) == int(case.golden["idlg/label"]) == case.case.label


def test_objective_and_gradient_are_zero_at_the_private_image(case):
    certain = 1e3 * case.label  # softmax of these logits is the one-hot label, exactly
    for fixed in (True, False):
        value, gradients = case.objective(case.case.image, certain, fixed)
        assert value < 1e-25
        for gradient in gradients:
            assert np.abs(gradient).max() < 1e-12


# --- every term against torch, through real networks ---


def torch_module(name):
    return importlib.import_module(
        "jaxleak.bench.networks.resnet" if name == "resnet" else f"tests.oracles.torch_{name}"
    )


class Terms(NamedTuple):
    """What an attacker may minimise on a LeNet, for a batch of two images."""

    model: LeNet
    state: dict
    private: np.ndarray
    candidate: np.ndarray
    label: np.ndarray
    run: object  # values [t] and gradients [t, b, h, w, c] by `NAMES`

    @property
    def params(self):
        return from_torch(self.model, self.state, self.private.shape[1:])


NAMES = ("l2", "cosine", "l2 + label", "l2 + 0.01 label", "cosine, layers")
LAYERS = ("*", "head:0", "conv2:4")


@pytest.fixture(scope="module")
def terms():
    rng, shape, classes = np.random.default_rng(2), (9, 8, 2), 5
    model = LeNet(num_classes=classes)
    state = {name: rng.uniform(-0.5, 0.5, size) for name, size in lenet_shapes(*shape, classes).items()}
    private, candidate, label = rng.random((2, *shape)), rng.random((2, *shape)), np.array([3, 1])
    params, target = from_torch(model, state, shape), one_hot(label, classes)

    def values(update, x):
        found = observe(model, params, x, target)
        l2, label_term = squared_l2(found.gradient, update), label_distance(found.logits, target)
        factors = scale_factors(update, "none", LAYERS)
        cosines = [cosine_distance(scaled(found.gradient, f), scaled(update, f)) for f in ((), factors)]
        return jnp.stack([l2, cosines[0], l2 + label_term, l2 + 0.01 * label_term, cosines[1]])

    def all_at(x):
        of = partial(values, loss_gradient(model, params, private, target))
        return of(x), jax.jacrev(of)(x)

    return Terms(model, state, private, candidate, label, quick_jit(all_at))


@pytest.mark.torch
def test_terms_and_their_gradients_equal_torch(terms):
    torch = require_torch()
    lenet, objectives = torch_module("lenet"), torch_module("objectives")
    net = lenet.lenet_from(terms.state, *terms.private.shape[1:3])
    private, candidate = (torch.from_numpy(to_nchw(x)) for x in (terms.private, terms.candidate))
    label = torch.from_numpy(terms.label)
    update = lenet.dlg_gradient(net, private, label)
    roots = {"body.0": 1, "body.2": 2, "body.4": 1, "fc.0": 0}  # of LAYERS
    weights = [roots[name.rpartition(".")[0]] for name in terms.state]

    def gradient(x):
        return lenet.parameter_gradient(net, x, label, create_graph=True)

    def l2_and_label(alpha, x):
        return lenet.objective(net, update, x, label) + alpha * objectives.label_distance(net(x), label)

    def weighted(tensors):
        return [weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]

    wanted = {
        "l2": lambda x: lenet.objective(net, update, x, label),
        "cosine": lambda x: objectives.cosine_distance(gradient(x), update),
        "l2 + label": partial(l2_and_label, 1.0),
        "l2 + 0.01 label": partial(l2_and_label, 0.01),
        "cosine, layers": lambda x: objectives.cosine_distance(weighted(gradient(x)), weighted(update)),
    }
    values, slopes = terms.run(terms.candidate)
    assert len(set(np.asarray(values).tolist())) == len(NAMES)
    for name, value, slope in zip(NAMES, values, slopes, strict=True):
        torchs, torch_slope = objectives.value_and_slope(wanted[name], candidate)
        assert float(value) == pytest.approx(torchs, rel=1e-9), name
        assert relative_error(slope, to_nhwc(torch_slope.numpy())) < 1e-9, name


def test_terms_on_gradients_are_zero_at_the_private_images(terms):
    values, slopes = terms.run(terms.private)
    for name in ("l2", "cosine", "cosine, layers"):
        at = NAMES.index(name)
        assert abs(float(values[at])) < 1e-25, name
        assert np.abs(slopes[at]).max() < 1e-12, name


BATCHNORMS = {"bn1", "layer1.0/bn1", "layer1.0/bn2", "layer2.0/bn1", "layer2.0/bn2", "layer2.0/downsample.1"}


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False])
def test_batchnorm_prior_and_its_gradient_equal_torch(train):
    torch = require_torch()
    resnet, objectives = torch_module("resnet"), torch_module("objectives")
    rng, shape, classes, label = np.random.default_rng(4), (8, 9, 3), 3, np.array([1, 0])
    model = ResNet(classes, (1, 1), BasicBlock, width=3, train=train)
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-2, 2, leaf.shape)), template)
    private, candidate = rng.random((2, 2, *shape))
    target = one_hot(label, classes)

    def statistics(x):
        return observe(model, params, x, target, statistics=True).statistics

    def all_at(x):
        wanted = statistics(private)
        value, slope = jax.value_and_grad(lambda x: statistics_distance(statistics(x), wanted))(x)
        return statistics(x), value, slope

    run = quick_jit(all_at)
    found, value, slope = run(candidate)
    net = resnet.ResNet(classes, (1, 1), False, 3, "cifar", torch.nn.functional.sigmoid, None)
    net = load(net, to_torch(model, params, shape)).train(train)
    images = [torch.from_numpy(to_nchw(x)) for x in (private, candidate)]
    shared, torchs_found = (objectives.statistics(net, x) for x in images)
    torchs, torch_slope = objectives.value_and_slope(
        lambda x: objectives.statistics_distance(objectives.statistics(net, x), shared), images[1]
    )
    assert set(found) == BATCHNORMS
    for name, moments in found.items():
        for a, b in zip(moments, torchs_found[name.replace("/", ".")], strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9)
    assert float(value) == pytest.approx(torchs, rel=1e-9)
    assert relative_error(slope, to_nhwc(torch_slope.numpy())) < 1e-9

    _, value, _ = run(private)
    assert float(value) < 1e-13  # the same sums in another order differ by an ulp, and norms are not squared


def test_one_pass_shows_what_separate_ones_do(terms):
    params, target = terms.params, one_hot(terms.label, 5)
    found = observe(terms.model, params, terms.candidate, target)
    np.testing.assert_allclose(found.logits, terms.model.apply({"params": params}, terms.candidate), rtol=1e-12)
    for ours, built in zip(
        jax.tree.leaves(
            jax.tree.map(lambda a: a.build() if isinstance(a, Outer) else a, found.gradient, is_leaf=outer)
        ),
        jax.tree.leaves(loss_gradient(terms.model, params, terms.candidate, target)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, built, rtol=1e-9, atol=1e-12)
    assert found.statistics == ()
    assert observe(terms.model, params, terms.candidate, target, statistics=True).statistics == {}


def outer(leaf):
    return isinstance(leaf, Outer)


# --- the pieces ---


def test_cross_entropy_is_the_mean_over_the_batch_for_any_target():
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((3, 4)), rng.dirichlet(np.ones(4), 3)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -(target * np.log(probability)).sum(axis=1).mean()
    assert float(cross_entropy(jnp.asarray(logits), jnp.asarray(target))) == pytest.approx(wanted, rel=1e-12)
    shifted = cross_entropy(jnp.asarray(logits + 1e4), jnp.asarray(target))  # no overflow
    assert float(shifted) == pytest.approx(wanted, rel=1e-8)


def test_squared_l2_sums_over_all_tensors():
    """Not the mean, not halved: 1 + 4 + 9 here."""
    a = {"head": {"kernel": jnp.array([[1.0, 2.0]])}, "conv": jnp.array(3.0)}
    b = jax.tree.map(jnp.zeros_like, a)
    assert squared_l2(a, b) == squared_l2(b, a) == squared_norm(a) == 14.0
    assert squared_l2(a, a) == 0.0
    assert squared_norm({}) == 0.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_is_zero_where_the_gradients_agree(name):
    gradient = {"head": {"kernel": jnp.array([[1.0, -2.0], [0.5, 4.0]]), "bias": jnp.array([1.0, 0.0])}}
    value, slope = jax.value_and_grad(OBJECTIVES[name])(gradient, gradient)
    assert abs(float(value)) < 1e-15
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-12


# --- labels ---


@pytest.fixture(scope="module")
def fifty():
    """Labels drawn and labels read, for 50 random networks and images."""
    model = LeNet(num_classes=10)

    def read(key):
        for_weights, for_image, for_label = jax.random.split(key, 3)
        image = jax.random.uniform(for_image, (1, 8, 8, 1))
        label = jax.random.randint(for_label, (1,), 0, 10)
        params = model.init(for_weights, image)["params"]
        return label[0], idlg_label(loss_gradient(model, params, image, one_hot(label, 10)))

    return quick_jit(jax.vmap(read))(jax.random.split(jax.random.key(0), 50))


def test_idlg_label_is_right_behind_sigmoids(fifty):
    drawn, found = fifty
    np.testing.assert_array_equal(found, drawn)
    assert len(set(np.asarray(drawn).tolist())) > 5


def test_idlg_label_is_the_class_with_the_smallest_sum():
    kernel = jnp.array([[0.5, -1.0, 0.1], [0.2, 0.7, -0.2]])  # [inputs, classes]
    layers = {"head": {"kernel": kernel}, "zebra": {"kernel": -kernel}, "alpha": {"kernel": -kernel}}
    assert int(idlg_label(layers)) == 1  # sums 0.7, -0.3, -0.1: the head by its name, not by its place


def test_a_model_without_head_is_named():
    with pytest.raises(InputError, match=r"^`label` other than joint.* named 'head'; the model has conv1, fc\.$"):
        head_gradient({"fc": {}, "conv1": {}}, "kernel")


@pytest.fixture(scope="module")
def behind_tanh():
    """For 50 random networks and images: the label, and what is read of it."""
    model = LeNet(num_classes=10, activation=jnp.tanh)

    def read(key):
        for_weights, for_image, for_label = jax.random.split(key, 3)
        image, label = jax.random.uniform(for_image, (1, 8, 8, 1)), jax.random.randint(for_label, (1,), 0, 10)
        params = model.init(for_weights, image)["params"]
        update = loss_gradient(model, params, image, one_hot(label, 10))
        return label[0], idlg_label(update), bias_labels(update, 1, jnp.zeros((0, 10)))[0]

    return quick_jit(jax.vmap(read))(jax.random.split(jax.random.key(1), 50))


def test_bias_label_is_right_behind_any_activation(behind_tanh):
    label, by_rows, by_bias = behind_tanh
    np.testing.assert_array_equal(by_bias, label)
    assert np.sum(by_rows != label) > 10  # iDLG's rule needs positive inputs


# --- scales ---


def gradients(rng, sizes=(1.0, 1e-3, 1e3)):
    """A gradient with a dense layer's kernel in factors, and an update of its shapes; sizes differ by tensor."""
    left, right = rng.standard_normal((1, 4)), rng.standard_normal((1, 3))
    gradient = {"head": {"kernel": Outer(jnp.asarray(left), jnp.asarray(right))}}
    update = {"head": {"kernel": jnp.asarray(sizes[0] * rng.standard_normal((4, 3)))}}
    for name, size in zip(("a", "b"), sizes[1:], strict=True):
        gradient[name], update[name] = (jnp.asarray(size * rng.standard_normal(5)) for _ in range(2))
    return gradient, update


def built(gradient):
    return [gradient["a"], gradient["b"], gradient["head"]["kernel"].build()]


@pytest.mark.parametrize("scale", SCALES)
def test_scales_are_their_formulas(scale):
    gradient, update = gradients(np.random.default_rng(0))
    errors = [float(np.sum(np.square(g - u))) for g, u in zip(built(gradient), jax.tree.leaves(update), strict=True)]
    norms = [float(np.sum(np.square(u))) for u in jax.tree.leaves(update)]
    wanted = {
        "none": sum(errors),
        "relative": sum(errors) / sum(norms),
        "per-tensor": np.mean(np.divide(errors, norms)),
    }
    factors = scale_factors(update, scale)
    found = squared_l2(scaled(gradient, factors), scaled(update, factors))
    assert float(found) == pytest.approx(wanted[scale], rel=1e-12)


@pytest.mark.parametrize("size", [1e-200, 1e200])
@pytest.mark.parametrize("scale", ["relative", "per-tensor"])
def test_scales_neither_underflow_nor_overflow(scale, size):
    gradient, update = gradients(np.random.default_rng(0), (1.0, 1.0, 1.0))
    factors = scale_factors(update, scale)
    wanted = squared_l2(scaled(gradient, factors), scaled(update, factors))
    kernel = gradient["head"]["kernel"]
    small = {
        **jax.tree.map(lambda leaf: size * leaf, gradient),
        "head": {"kernel": Outer(kernel.left, size * kernel.right)},
    }
    small_update = jax.tree.map(lambda leaf: size * leaf, update)
    factors = scale_factors(small_update, scale)
    found = squared_l2(scaled(small, factors), scaled(small_update, factors))
    assert float(found) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_tensors_without_gradient_are_compared_as_they_are(scale):
    update = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    factors = scale_factors(update, scale)
    found = squared_l2(scaled({"a": jnp.ones(3), "b": jnp.zeros(2)}, factors), scaled(update, factors))
    assert float(found) == pytest.approx(1.5 if scale == "per-tensor" else 3.0)


# --- cosine ---


def factors_and_update(seed=0, batch=3):
    """A gradient whose dense kernel is `batch` outer products, and an update."""
    rng = np.random.default_rng(seed)
    kernel = Outer(*(jnp.asarray(rng.standard_normal((batch, size))) for size in (4, 3)))
    gradient = {"conv": jnp.asarray(rng.standard_normal((2, 5))), "head": {"kernel": kernel}}
    update = {"conv": jnp.asarray(rng.standard_normal((2, 5))), "head": {"kernel": jnp.asarray(rng.random((4, 3)))}}
    return gradient, update


def with_built(gradient):
    return {**gradient, "head": {"kernel": gradient["head"]["kernel"].build()}}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def exact_cosine(gradient, update):
    """In float64, and accurate where the two are nearly parallel: sin^2 = 1 - cos^2 by the residual."""
    g, u = (vector / np.linalg.norm(vector) for vector in (flat(gradient), flat(update)))
    return np.sum((g - u) ** 2) / 2


def times(gradient, size):
    """A gradient with an `Outer`, times a number."""
    return scaled(gradient, jax.tree.map(lambda _: size, with_built(gradient)))


cosine_and_slope = jax.jit(jax.value_and_grad(cosine_distance))


@pytest.mark.parametrize("batch", [1, 3])
def test_cosine_is_its_formula_whether_or_not_products_are_built(batch):
    gradient, update = factors_and_update(batch=batch)
    g, u = flat(with_built(gradient)), flat(update)
    value, slope = cosine_and_slope(gradient, update)
    assert float(value) == pytest.approx(1 - g @ u / np.linalg.norm(g) / np.linalg.norm(u), rel=1e-12)
    built, built_slope = jax.value_and_grad(lambda gradient: cosine_distance(with_built(gradient), update))(gradient)
    assert float(value) == pytest.approx(float(built), rel=1e-12)
    np.testing.assert_allclose(flat(slope), flat(built_slope), rtol=1e-10, atol=1e-14)
    cosine = g @ u / np.linalg.norm(g) / np.linalg.norm(u)
    plain_slope = (cosine * g / np.linalg.norm(g) - u / np.linalg.norm(u)) / np.linalg.norm(g)
    np.testing.assert_allclose(np.ravel(slope["conv"]), plain_slope[:10], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("outer", [False, True])
def test_the_cosine_can_be_derived_twice_and_with_respect_to_either(outer):
    def gradient(v):
        kernel = Outer(v[3:7].reshape(2, 2), v[7:13].reshape(2, 3))
        return [v[:3], kernel if outer else kernel.build()]

    def formula(v):
        g, u = jnp.concatenate([v[:3], gradient(v)[1].build().ravel() if outer else gradient(v)[1].ravel()]), v[13:]
        return 1 - g @ u / jnp.sqrt((g @ g) * (u @ u))

    v = jnp.asarray(np.random.default_rng(0).standard_normal(22))
    for derivative in (jax.grad, jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        found = quick_jit(derivative(lambda v: cosine_distance(gradient(v), [v[13:16], v[16:].reshape(2, 3)])))(v)
        np.testing.assert_allclose(found, quick_jit(derivative(formula))(v), rtol=1e-10, atol=1e-14)


def test_cosine_of_opposite_and_of_orthogonal_gradients():
    u = {"a": jnp.array([1.0, 2.0]), "b": jnp.zeros(1)}
    assert float(cosine_distance(jax.tree.map(jnp.negative, u), u)) == pytest.approx(2)
    assert float(cosine_distance({"a": jnp.array([-2.0, 1.0]), "b": jnp.ones(1)}, u)) == pytest.approx(1)


@pytest.mark.parametrize("size", [1e-200, 1e-3, 1e200])
@pytest.mark.parametrize("which", ["gradient", "update", "left"])
def test_cosine_ignores_scale(size, which):
    gradient, update = factors_and_update()
    wanted, wanted_slope = cosine_and_slope(gradient, update)
    if which == "update":
        value, slope = cosine_and_slope(gradient, jax.tree.map(lambda leaf: size * leaf, update))
    else:
        kernel = gradient["head"]["kernel"]
        if which == "left":  # small inputs and large slopes, or the other way round: the same gradient
            other = {**gradient, "head": {"kernel": Outer(size * kernel.left, kernel.right / size)}}
        else:
            other = times(gradient, size)
        value, slope = cosine_and_slope(other, update)
        by = 1.0 if which == "left" else size
        wanted_slope = {**wanted_slope, "conv": wanted_slope["conv"] / by}
    assert float(value) == pytest.approx(float(wanted), rel=1e-12)
    np.testing.assert_allclose(slope["conv"], wanted_slope["conv"], rtol=1e-10)
    assert np.all(np.isfinite(flat(slope)))


@pytest.mark.parametrize("zero", ["gradient", "left", "right", "update", "both"])
def test_cosine_with_a_zero_is_one_and_has_no_slope(zero):
    gradient, update = factors_and_update()
    if zero in ("update", "both"):
        update = jax.tree.map(jnp.zeros_like, update)
    if zero in ("gradient", "both"):
        gradient = jax.tree.map(jnp.zeros_like, gradient)
    if zero in ("left", "right"):
        kernel = gradient["head"]["kernel"]
        kernel = kernel._replace(**{zero: jnp.zeros_like(getattr(kernel, zero))})
        gradient = {"conv": jnp.zeros_like(gradient["conv"]), "head": {"kernel": kernel}}
    value, slopes = jax.value_and_grad(cosine_distance, (0, 1))(gradient, update)
    assert float(value) == float(cosine_distance(gradient, update)) == 1
    np.testing.assert_array_equal(flat(slopes), 0)
    ones = jax.tree.map(jnp.ones_like, (gradient, update))
    assert [float(part) for part in jax.jvp(cosine_distance, (gradient, update), ones)] == [1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cosine_does_not_hide_what_is_not_finite(bad):
    gradient, update = factors_and_update()
    gradient["conv"] = gradient["conv"].at[0, 0].set(bad)
    assert np.isnan(cosine_and_slope(gradient, update)[0])


def test_cosine_of_trials_at_once_equals_a_loop():
    trials = [factors_and_update(seed) for seed in range(3)]
    trials[1] = (jax.tree.map(jnp.zeros_like, trials[1][0]), trials[1][1])  # touches no other
    together = jax.jit(jax.vmap(jax.value_and_grad(cosine_distance)))(
        *jax.tree.map(lambda *leaves: jnp.stack(leaves), *trials)
    )
    for at, trial in enumerate(trials):
        value, slope = cosine_and_slope(*trial)
        assert float(together[0][at]) == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(flat(jax.tree.map(lambda leaf: leaf[at], together[1])), flat(slope), rtol=1e-10)  # noqa: B023


def test_the_program_of_the_cosine_grows_no_faster_than_its_tensors():
    """ResNet-152 has 467 of them; XLA repeated the sum over all in the slope of each, and compiled for 18 minutes."""

    def distance(x, update):
        gradient = [jnp.tanh(x * (n + leaf)) for n, leaf in enumerate(update)]
        return cosine_distance(gradient, update)

    def lines(tensors):
        update = [jnp.ones((3, 4 + n % 5)) for n in range(tensors)]
        return len(jax.jit(jax.grad(distance)).lower(1.0, update).compile().as_text().splitlines())

    assert lines(32) < 2.2 * lines(16)


def in_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize("size", [1.0, 1e-22, 1e-30, 1e22])
def test_cosine_of_small_gradients_in_float32(size):
    """Their squares are outside float32's range."""
    gradient, update = factors_and_update()
    small = in_float32(times(gradient, size)), in_float32(jax.tree.map(lambda leaf: size * leaf, update))
    value, slope = cosine_and_slope(*small)
    wanted, wanted_slope = cosine_and_slope(gradient, update)
    assert value.dtype == slope["conv"].dtype == jnp.float32
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    assert relative_error(size * np.asarray(slope["conv"], float), wanted_slope["conv"]) < 1e-6


@pytest.mark.parametrize(("noise", "tolerance"), [(1e-2, 1e-5), (1e-4, 1e-3), (1e-5, 1e-2)])
def test_cosine_is_accurate_near_the_solution_in_float32(noise, tolerance):
    """As 1 - <g, u> / (|g| |u|) it would be lost below 1e-7; here it is some noise^2 / 2."""
    rng = np.random.default_rng(0)
    update = in_float32({"a": rng.standard_normal(500), "b": 1e-3 * rng.standard_normal(500)})
    gradient = in_float32(jax.tree.map(lambda leaf: leaf * (1 + noise * rng.standard_normal(500)), update))
    wanted = exact_cosine(gradient, update)
    assert wanted < noise**2
    assert float(cosine_distance(gradient, update)) == pytest.approx(wanted, rel=tolerance)


# --- layers ---


def nested():
    rng = np.random.default_rng(0)
    blocks = {"conv1": {"kernel": rng.random((2, 3))}, "bn1": {"scale": rng.random(3), "bias": rng.random(3)}}
    tree = {"layer1.0": blocks, "layer1.01": {"kernel": rng.random(4)}, "head": {"bias": rng.random(2)}}
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.parametrize(
    ("layers", "conv1", "scale", "other", "head"),
    [
        (("*",), 1, 1, 1, 1),
        (("*", "head:0"), 1, 1, 1, 0),
        (("head:0", "*"), 1, 1, 1, 1),
        (("layer1.0",), 1, 1, 0, 0),
        (("layer1.0/conv1:4.0",), 4, 0, 0, 0),
        (("layer1.0:9", "layer1.0/bn1/scale:4", "head"), 9, 4, 0, 1),
        (("layer1.01:2.25",), 0, 0, 2.25, 0),
    ],
)
def test_layers_give_weights_by_whole_names_and_later_entries_win(layers, conv1, scale, other, head):
    factors = scale_factors(nested(), "none", layers)
    inside = factors["layer1.0"]
    found = [inside["conv1"]["kernel"], inside["bn1"]["scale"], factors["layer1.01"]["kernel"], factors["head"]["bias"]]
    np.testing.assert_allclose(np.square(found), [conv1, scale, other, head])


@pytest.mark.parametrize("scale", SCALES)
def test_scales_with_layers_are_their_formulas(scale):
    gradient, update = gradients(np.random.default_rng(0))
    weights = np.array([4.0, 0.0, 0.5])  # a, b, head
    errors = [float(np.sum(np.square(g - u))) for g, u in zip(built(gradient), jax.tree.leaves(update), strict=True)]
    norms = [float(np.sum(np.square(u))) for u in jax.tree.leaves(update)]
    wanted = {
        "none": weights @ errors,
        "relative": weights @ errors / (weights @ norms),
        "per-tensor": weights @ np.divide(errors, norms) / 2,
    }
    factors = scale_factors(update, scale, ("a:4", "head:.5"))
    found = squared_l2(scaled(gradient, factors), scaled(update, factors))
    assert float(found) == pytest.approx(wanted[scale], rel=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_all_layers_by_star_are_all_layers(scale):
    _, update = gradients(np.random.default_rng(0))
    starred, plain = (scale_factors(update, scale, layers) for layers in (("*",), ()))
    if scale == "none":
        assert plain == ()
        plain = jax.tree.map(lambda _: 1.0, update)
    jax.tree.map(np.testing.assert_array_equal, starred, plain)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("scale", SCALES)
def test_layers_of_weight_zero_have_no_influence(name, scale):
    gradient, update = gradients(np.random.default_rng(0))

    def value(gradient, update, layers):
        factors = scale_factors(update, scale, layers)
        return OBJECTIVES[name](scaled(gradient, factors), scaled(update, factors))

    other = {**gradient, "b": gradient["b"] + 1}, {**update, "b": 3 * update["b"]}
    for layers in (("*", "b:0"), ("a", "head")):
        assert float(value(*other, layers)) == float(value(gradient, update, layers))
        slope = jax.grad(value)(gradient, update, layers)
        np.testing.assert_array_equal(slope["b"], 0)
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves({**slope, "b": jnp.ones(1)}))
    assert float(value(*other, ())) != pytest.approx(float(value(gradient, update, ())))


def test_entries_of_layers_are_read():
    assert parse_layer("conv1") == ("conv1", 1.0)
    assert parse_layer("layer1.0/conv1:4.5") == ("layer1.0/conv1", 4.5)
    assert parse_layer("*:0") == ("*", 0.0)
    for text in ("", ":2", "conv1:", "conv1:x", "conv1:-1", "conv1:nan", "conv1:inf", "a:1:2"):
        with pytest.raises(
            InputError, match=r"^`layers` must be names of layers.*such as conv1 or conv1:4\.0; got "
        ) as e:
            parse_layer(text)
        assert str(e.value).endswith(f"got {text!r}.")
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("head", "conv9"), r"of the network: head, layer1\.0, layer1\.01, or layers inside .* as \S+; got 'conv9'\.$"),
        (("haed",), r"got 'haed'\. Did you mean 'head'\?$"),
        (("layer1",), r"got 'layer1'\. Did you mean 'layer1\.01?'\?$"),
        (("conv1",), r"got 'conv1'\. Did you mean 'layer1\.0/conv1'\?$"),
        (("layer1.0/",), r"got 'layer1\.0/'\."),
        (("head:0", "layer1.0:0"), r"^`layers` must leave a layer with a weight above 0; got head:0 layer1\.0:0\.$"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers, message):
    for check in (lambda: check_layers(layers, nested()), lambda: scale_factors(nested(), "relative", layers)):
        with pytest.raises(InputError, match=message) as error:
            check()
        assert "\n" not in str(error.value)
    check_layers((), nested())
    check_layers(("*", "layer1.0/conv1/kernel:2"), nested())


# --- other terms ---


def test_label_distance_is_the_mean_over_images():
    logits, target = jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.5, 0.5, 1e-9]])) + 7, jnp.eye(3)[jnp.array([1, 0])]
    assert float(label_distance(logits, target)) == pytest.approx((0.14 + 0.5) / 2)
    certain, slope = jax.value_and_grad(label_distance)(1e3 * target, target)
    assert float(certain) == 0
    np.testing.assert_array_equal(slope, 0)


def moments(seed):
    rng = np.random.default_rng(seed)
    return {name: Moments(*(jnp.asarray(rng.random(size)) for _ in range(2))) for name, size in (("b", 3), ("a/b", 2))}


def test_statistics_distance_sums_norms_and_is_flat_where_they_agree():
    zero = jax.tree.map(jnp.zeros_like, moments(0))
    apart = {**zero, "b": Moments(jnp.array([3.0, 0.0, 4.0]), jnp.array([0.0, 2.0, 0.0]))}
    assert float(statistics_distance(apart, zero)) == pytest.approx(5 + 2)
    value, slope = jax.value_and_grad(statistics_distance)(moments(1), moments(1))
    assert float(value) == 0
    np.testing.assert_array_equal(flat(slope), 0)


def test_statistics_distance_of_trials_at_once_equals_a_loop():
    trials = [(moments(seed), moments(0)) for seed in range(3)]  # the first agrees
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trials)
    values, slopes = jax.vmap(jax.value_and_grad(statistics_distance))(*stacked)
    for at, trial in enumerate(trials):
        value, slope = jax.value_and_grad(statistics_distance)(*trial)
        assert float(values[at]) == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(flat({n: (m.mean[at], m.var[at]) for n, m in slopes.items()}), flat(slope))


def test_what_is_left_of_an_update():
    nan, inf = np.nan, np.inf
    left = share_left("cosine", [0.0, 0.5, 0.9, 1.0, 1.5, nan, inf], 3.0)  # 1 - cos^2 of the angle, 1 beyond 90 degrees
    np.testing.assert_allclose(left, [0, 0.75, 0.99, 1, 1, nan, inf])
    np.testing.assert_allclose(share_left("l2", [0.0, 3.0, 1.0, 0.0], [3.0, 2.0, 0.0, 0.0]), [0, 1.5, inf, nan])
    assert np.isnan(share_left("l1", 0.5, 1.0))
    assert np.isnan(share_left("likelihood", [0.5, 1.0], 1.0)).tolist() == [True, True]
