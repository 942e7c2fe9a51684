"""The shared update, the objective and its gradient against torch's numbers; labels read from the update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import one_hot, softmax

from jaxleak.errors import InputError
from jaxleak.labels import head_gradient, idlg_label
from jaxleak.models import LeNet
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.objectives import OBJECTIVES, cross_entropy, loss_gradient, squared_l2, squared_norm
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
    with pytest.raises(InputError, match=r"^`label` idlg needs a layer named 'head'; the model has conv1, fc\.$"):
        head_gradient({"fc": {}, "conv1": {}})
