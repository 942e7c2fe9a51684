"""The shared update, the objective and its gradient against torch's numbers; labels read from the update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import one_hot, softmax

from jaxleak.dense import Outer
from jaxleak.errors import InputError
from jaxleak.labels import bias_label, head_gradient, head_input, idlg_label
from jaxleak.models import LeNet
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.objectives import (
    OBJECTIVES,
    SCALES,
    cross_entropy,
    factored_gradient,
    feature_distance,
    loss_gradient,
    scale_factors,
    scaled,
    squared_l2,
    squared_norm,
)
from tests.oracles.cases import lenet_cases

QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


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

        self.update = jax.jit(update, compiler_options=QUICK)(case.image, self.label)
        compiled = jax.jit(jax.value_and_grad(objective, (0, 1)), compiler_options=QUICK)
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

    return jax.jit(jax.vmap(read), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 50))


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


def test_a_head_without_bias_is_named():
    for read in (bias_label, head_input):
        with pytest.raises(InputError, match=r"^`label` bias, and `features`, need a head with a bias; it has kernel"):
            read({"head": {"kernel": jnp.ones((2, 3))}})


@pytest.fixture(scope="module")
def behind_tanh():
    """For 50 random networks and images: label and head input, and what is read of them."""
    model = LeNet(num_classes=10, activation=jnp.tanh)

    def read(key):
        for_weights, for_image, for_label = jax.random.split(key, 3)
        image, label = jax.random.uniform(for_image, (1, 8, 8, 1)), jax.random.randint(for_label, (1,), 0, 10)
        params = model.init(for_weights, image)["params"]
        update = loss_gradient(model, params, image, one_hot(label, 10))
        kernel = factored_gradient(model, params, image, one_hot(label, 10))["head"]["kernel"]
        return label[0], kernel.left[0], idlg_label(update), bias_label(update), head_input(update)

    return jax.jit(jax.vmap(read), compiler_options=QUICK)(jax.random.split(jax.random.key(1), 50))


def test_bias_label_is_right_behind_any_activation(behind_tanh):
    label, _, by_rows, by_bias, _ = behind_tanh
    np.testing.assert_array_equal(by_bias, label)
    assert np.sum(by_rows != label) > 10  # iDLG's rule needs positive inputs


def test_the_heads_input_follows_from_its_gradient(behind_tanh):
    _, features, _, _, found = behind_tanh
    np.testing.assert_allclose(found, features, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e-19, 1e-30])
def test_the_heads_input_follows_from_small_gradients_in_float32(size):
    rng = np.random.default_rng(0)
    features, slope = rng.uniform(0, 1, 50), size * rng.standard_normal(10)
    update = {"head": {"kernel": np.outer(features, slope), "bias": slope}}
    found = head_input(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), update))
    np.testing.assert_allclose(found, features, rtol=1e-5)


def test_an_empty_gradient_gives_no_input():
    zero = {"head": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    np.testing.assert_array_equal(head_input(zero), np.zeros(2))


# --- scales and features ---


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


def test_feature_distance_is_relative_and_needs_a_dense_head():
    gradient = {"head": {"kernel": Outer(jnp.array([[1.0, 2.0]]), jnp.ones((1, 3)))}}
    assert float(feature_distance(gradient, jnp.array([1.0, 1.0]))) == pytest.approx(0.5)
    assert float(feature_distance(gradient, jnp.zeros(2))) == pytest.approx(5.0)
    with pytest.raises(InputError, match=r"^`features` needs a head that is a dense layer"):
        feature_distance({"head": {"kernel": jnp.ones((2, 3))}}, jnp.zeros(2))
