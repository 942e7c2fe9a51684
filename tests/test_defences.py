"""Defences against torch's and numpy's own: what each does, off and on, over a trial axis, in a row, and as text."""

import functools
import math
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxleak.errors import InputError
from jaxleak.models import LeNet
from jaxleak.models.weights import to_torch
from jaxleak.threat.defences import (
    DEFENCES,
    DPSGD,
    ZERO,
    BFloat16,
    Clip,
    Defence,
    ErrorFeedback,
    Float16,
    Gaussian,
    Laplace,
    Prune,
    PruneLayer,
    Quantise,
    Soteria,
    TopK,
    check_defences,
    defence_form,
    defence_text,
    defend,
    parse_defence,
    sparse_mask,
)
from jaxleak.threat.network import draw_params
from jaxleak.threat.observe import follows
from jaxleak.threat.precode import Precode
from jaxleak.threat.victim import Victim

KEY = jax.random.key(3)
DTYPES = ("float32", "float64")
# One of each, at a strength that changes every update below.
EXAMPLES = {
    "gaussian": "gaussian:0.1",
    "laplace": "laplace:0.1",
    "prune": "prune:0.6",
    "prune-layer": "prune-layer:0.6",
    "top-k": "top-k:7",
    "error-feedback": "error-feedback:0.6:3",
    "soteria": "soteria:0.4",
    "precode": "precode:8",
    "clip": "clip:0.5",
    "dp-sgd": "dp-sgd:0.5:0.2",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
}
SCORES = np.array([2.0, 0.0, 1.0])  # of the features that the head of the updates below reads
RANDOM = sorted(name for name, kind in DEFENCES.items() if kind.random)


def make_update(seed=0, dtype="float64", lead=()):
    """Tensors as of a small network, of two shapes and sizes, some of whose entries are zero."""
    draw = np.random.default_rng(seed)
    shapes = {"conv": {"bias": (5,), "kernel": (3, 2, 4)}, "head": {"bias": (5,), "kernel": (3, 2, 4)}}
    scales = {"conv": 0.01, "head": 1.0}

    def tensor(name, shape):
        values = scales[name] * draw.standard_normal((*lead, *shape))
        return jnp.asarray(np.where(draw.random(values.shape) < 0.1, 0, values), dtype)

    return {name: {leaf: tensor(name, shape) for leaf, shape in layer.items()} for name, layer in shapes.items()}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def flat(tree):
    return np.concatenate([leaf.ravel() for leaf in leaves(tree)])


@functools.cache
def compiled(defence):
    """Compiling is most of the tests' time: noise as jax keeps it, for each shape; all else at once for all tests."""

    def apply(update, key):
        return defence.apply_beside(update, key, lambda: SCORES)

    return apply if defence.random else jax.jit(apply)


def run(defence, update, key=KEY):
    return compiled(defence)(update, key)


def run_examples(defence, gradients):
    return (defence.apply_examples if defence.noise else jax.jit(defence.apply_examples))(gradients, KEY)


def trial(tree, i):
    """The i-th along the leading axis."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


def assert_trees_close(got, wanted, tolerance=0.0):
    """Same structure, shapes and types, entries within `tolerance` of the largest one."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for one, other in zip(leaves(got), leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(flat(wanted)).max())


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=DEFENCES)
def name(request):
    return request.param


def test_every_defence_is_tested_and_has_a_zero_setting():
    assert set(EXAMPLES) == set(ZERO) == set(DEFENCES)
    assert {type(parse_defence(text)) for text in EXAMPLES.values()} == set(DEFENCES.values())


def test_which_draw_noise_prune_and_act_on_examples():
    assert [name for name, kind in DEFENCES.items() if kind.per_example] == ["dp-sgd"]
    assert set(RANDOM) == {"gaussian", "laplace", "dp-sgd"}
    assert {name for name, kind in DEFENCES.items() if kind.sparse} == {
        *("prune", "prune-layer", "top-k", "error-feedback", "soteria")
    }


def test_switched_off_it_is_the_identity(name):
    update = make_update()
    assert_trees_close(run(parse_defence(ZERO[name]), update), update)


def test_over_a_trial_axis_it_is_a_loop_and_stays_in_float32(name):
    """In float64: the others here, and several in a row over a trial axis below."""
    trials = make_update(dtype="float32", lead=(3,))
    keys = jax.random.split(KEY, 3)
    defence = parse_defence(EXAMPLES[name])
    together = jax.jit(jax.vmap(compiled(defence)))(trials, keys)
    one_by_one = [run(defence, trial(trials, i), keys[i]) for i in range(3)]
    assert_trees_close(together, jax.tree.map(lambda *parts: np.stack(parts), *one_by_one), 1e-6)  # the order of sums
    changed = [bool(np.any(flat(trial(together, i)) != flat(trial(trials, i)))) for i in range(3)]
    assert changed == [not DEFENCES[name].in_network] * 3


def test_zeros_stay_finite(name):
    zeros = jax.tree.map(np.zeros_like, make_update())
    defended = run(parse_defence(EXAMPLES[name]), zeros)
    assert np.all(np.isfinite(flat(defended)))
    if not DEFENCES[name].random:
        assert not flat(defended).any()


def test_the_first_sentence_of_each_is_short(name):
    """README's table is made of them."""
    first = (DEFENCES[name].__doc__ or "").split("\n")[0]
    assert first.endswith(".")
    assert 20 < len(first) < 80


# Noise

LARGE = {"a": np.ones(20_000), "b": np.zeros(20_000)}
NORMAL, LAPLACIAN = stats.norm(scale=0.3), stats.laplace(scale=0.3 / math.sqrt(2))


@pytest.mark.parametrize(
    ("defence", "distribution", "other"),
    [
        (Gaussian(sigma=0.3), NORMAL, LAPLACIAN),
        (Laplace(sigma=0.3), LAPLACIAN, NORMAL),
        (DPSGD(clip=1e3, noise=3e-4), NORMAL, LAPLACIAN),
    ],
    ids=["gaussian", "laplace", "dp-sgd"],
)
def test_noise_has_the_stated_distribution(defence, distribution, other):
    assert (distribution.std(), other.std()) == pytest.approx((0.3, 0.3))
    noise = jax.tree.map(lambda noisy, clean: noisy - clean, run(defence, LARGE), LARGE)
    for values in leaves(noise):
        assert stats.kstest(values.ravel(), distribution.cdf).pvalue > 1e-3
        assert stats.kstest(values.ravel(), other.cdf).pvalue < 1e-6
        assert values.mean() == pytest.approx(0, abs=0.01)  # five standard errors, and so is the next
        assert values.std() == pytest.approx(0.3, rel=0.04)


@pytest.mark.parametrize("name", RANDOM)
def test_noise_differs_by_tensor_and_key_and_returns_with_the_key(name):
    update = {"a": np.zeros(50), "b": np.zeros(50)}
    defence = parse_defence(EXAMPLES[name])
    first, again, other = (run(defence, update, key) for key in (KEY, KEY, jax.random.key(4)))
    assert_trees_close(again, first)
    assert not np.intersect1d(first["a"], first["b"]).size
    assert not np.intersect1d(flat(first), flat(other)).size


@pytest.mark.parametrize("name", sorted(set(DEFENCES) - set(RANDOM)))
def test_without_noise_the_key_does_not_matter(name):
    update, defence = make_update(), parse_defence(EXAMPLES[name])
    assert_trees_close(run(defence, update), run(defence, update, jax.random.key(4)))


# Pruning


def smallest_zeroed(values, zeros):
    """numpy: without its `zeros` smallest entries; of equals the later go first."""
    order = sorted(range(values.size), key=lambda i: (abs(values.flat[i]), -i))
    pruned = values.copy()
    for i in order[:zeros]:
        pruned.flat[i] = 0
    return pruned


@pytest.mark.parametrize(("share", "rounds"), [(0.5, 1), (0.5, 2), (0.8, 7)])
def test_error_feedback_is_numpys_loop(share, rounds):
    update = make_update()
    values, memory, sent = flat(update), 0.0, np.zeros(0)
    for _ in range(rounds):
        gathered = values + memory
        sent = smallest_zeroed(gathered, round(share * values.size))
        memory = gathered - sent
    np.testing.assert_allclose(flat(run(ErrorFeedback(share=share, rounds=rounds), update)), sent, rtol=1e-12)
    if rounds == 1:
        assert_trees_close(run(Prune(share=share), update), run(ErrorFeedback(share=share, rounds=1), update))


@pytest.mark.parametrize("batch", [1, 3])
def test_soteria_hides_the_features_that_torch_finds(torch, batch):
    """The scores by torch's autograd, one feature after the other, as the reference implementation has them."""
    from tests.oracles.torch_lenet import lenet_from

    model, shape, share = LeNet(num_classes=5), (12, 12, 1), 0.25
    params = draw_params(model, jax.random.key(1), shape)
    pixels = np.random.default_rng(0).random((batch, *shape))
    network = lenet_from(to_torch(model, params, shape), 12, 12)
    x = torch.tensor(pixels.transpose(0, 3, 1, 2), requires_grad=True)
    features = network.body(x).flatten(1)
    scores = []
    for feature in range(features.shape[1]):
        (slope,) = torch.autograd.grad(features[:, feature].sum(), x, retain_graph=True)
        scores.append(float(sum(slope.flatten(1).norm(dim=1) / features[:, feature].detach())))
    # torch flattens channel by channel, we pixel by pixel.
    side = model.head_input_shape(shape)
    wanted = np.abs(np.array(scores)).reshape(side[2], side[0], side[1]).transpose(1, 2, 0).ravel()
    np.testing.assert_allclose(follows(model, params, jnp.asarray(pixels)), wanted, rtol=1e-9)
    labels = np.arange(batch)
    fields = {"model": model, "model_name": "lenet", "dataset": "own", "split": "train", "num_classes": 5}
    victim = Victim(
        **fields, indices=list(range(batch)), images=pixels, labels=labels, network="shared", params=params,
        batch=batch, defences=(Soteria(share=share),),
    )  # fmt: skip
    update = jax.jit(victim.share)(params, jnp.asarray(pixels), victim.target(labels), KEY)
    hidden = np.all(np.asarray(update["head"]["kernel"]) == 0, axis=1)
    assert hidden.sum() == round(share * wanted.size)
    assert wanted[hidden].max() <= wanted[~hidden].min()
    assert all(np.all(leaf != 0) for leaf in leaves({**update, "head": {"bias": update["head"]["bias"]}}))


def test_soteria_without_images_is_refused():
    with pytest.raises(InputError, match="needs the private images"):
        Soteria(share=0.5).apply(make_update(), KEY)
    with pytest.raises(InputError, match="named 'head'"):
        Soteria(share=0.5).apply_beside({"conv": make_update()["conv"]}, KEY, lambda: jnp.asarray(SCORES))


@pytest.mark.parametrize("share", [0.1, 0.29, 0.5, 1.0])
def test_prune_is_numpys_sort(share):
    update = make_update()
    values = flat(update)
    wanted = smallest_zeroed(values, round(share * values.size))
    np.testing.assert_array_equal(flat(run(Prune(share=share), update)), wanted)
    by_layer = [smallest_zeroed(leaf, round(share * leaf.size)).ravel() for leaf in leaves(update)]
    np.testing.assert_array_equal(flat(run(PruneLayer(share=share), update)), np.concatenate(by_layer))


def test_pruning_over_all_tensors_is_not_pruning_each():
    update = make_update()
    over_all, each = (flat(run(kind(share=0.5), update)) for kind in (Prune, PruneLayer))
    assert np.any(over_all != each)


def test_a_share_of_the_entries_is_zero_even_among_equals():
    update = {"a": np.full(40, -2.0), "b": np.full((6, 10), 2.0)}
    pruned = run(Prune(share=0.29), update)
    np.testing.assert_array_equal(flat(pruned), [-2.0] * 40 + [2.0] * 31 + [0.0] * 29)
    kept = run(TopK(count=3), update)
    np.testing.assert_array_equal(flat(kept), [-2.0] * 3 + [0.0] * 97)


@pytest.mark.parametrize("count", [1, 40])
def test_top_k_is_torchs(torch, count):
    update = make_update()
    values = torch.tensor(flat(update))
    kept = torch.topk(values.abs(), count).indices
    wanted = torch.zeros_like(values)
    wanted[kept] = values[kept]
    np.testing.assert_array_equal(flat(run(TopK(count=count), update)), wanted.numpy())
    assert (wanted != 0).sum() == count


def test_top_k_of_more_than_there_are_keeps_all():
    assert_trees_close(run(TopK(count=10**6), make_update()), make_update())


def test_pruning_does_not_hide_what_is_not_a_number():
    update = {"a": np.array([1.0, np.nan, 3.0, -2.0])}
    np.testing.assert_array_equal(flat(run(Prune(share=0.5), update)), [0, np.nan, 3, 0])


# Norms


@pytest.mark.parametrize("norm", [1e-3, 0.5, 1e3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_torchs(torch, norm, dtype):
    update = make_update(dtype=dtype)
    parameters = [torch.nn.Parameter(torch.zeros(leaf.shape, dtype=getattr(torch, dtype))) for leaf in leaves(update)]
    for parameter, leaf in zip(parameters, leaves(update), strict=True):
        parameter.grad = torch.tensor(leaf)
    torch.nn.utils.clip_grad_norm_(parameters, norm)
    wanted = np.concatenate([parameter.grad.numpy().ravel() for parameter in parameters])
    got = run(Clip(norm=norm), update)
    np.testing.assert_allclose(flat(got), wanted, rtol=2e-6)  # torch divides by |u| + 1e-6; |u| is about 5
    assert np.linalg.norm(flat(got)) == pytest.approx(min(norm, np.linalg.norm(flat(update))), rel=1e-6)


def test_clip_has_a_gradient_at_zero():
    """For an attacker who goes through the defence."""
    slope = jax.jit(jax.grad(lambda u: Clip(norm=1.0).apply(u, KEY).sum()))(np.zeros(3))
    np.testing.assert_array_equal(slope, np.ones(3))


def numpy_dp_sgd(gradients, clip):
    """Abadi et al. 2016, algorithm 1, without its noise: image by image."""
    examples = leaves(gradients)[0].shape[0]
    total = [np.zeros(leaf.shape[1:]) for leaf in leaves(gradients)]
    for i in range(examples):
        one = [leaf[i] for leaf in leaves(gradients)]
        norm = math.sqrt(sum(float(np.sum(leaf**2)) for leaf in one))
        for sum_, leaf in zip(total, one, strict=True):
            sum_ += leaf / max(1.0, norm / clip)
    return np.concatenate([sum_.ravel() / examples for sum_ in total])


@pytest.mark.parametrize("clip", [0.1, 5.0, 100.0])
def test_dp_sgd_clips_each_image(clip):
    gradients = make_update(lead=(6,))
    got = run_examples(DPSGD(clip=clip, noise=0.0), gradients)
    np.testing.assert_allclose(flat(got), numpy_dp_sgd(gradients, clip), rtol=1e-12)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, make_update())


def test_dp_sgd_is_not_clipping_the_mean():
    """Images with norms on both sides of the bound: only some are clipped."""
    gradients = make_update(lead=(6,))
    norms = np.sqrt(sum(np.sum(leaf.reshape(6, -1) ** 2, axis=1) for leaf in leaves(gradients)))
    clip = float(np.median(norms))
    mean = jax.tree.map(lambda leaf: leaf.mean(0), gradients)
    got = flat(run_examples(DPSGD(clip=clip, noise=0.0), gradients))
    assert norms.min() < clip < norms.max()
    assert np.abs(got - flat(run(Clip(norm=clip), mean))).max() > 1e-3


def test_dp_sgd_switched_off_is_the_mean():
    gradients = make_update(lead=(6,))
    for noise in (0.0, 7.0):
        got = run_examples(DPSGD(clip=0.0, noise=noise), gradients)
        assert_trees_close(got, jax.tree.map(lambda leaf: leaf.mean(0), gradients), 1e-14)


@pytest.mark.parametrize("examples", [1, 8])
def test_dp_sgd_noise_is_over_the_images(examples):
    defence = DPSGD(clip=0.5, noise=0.2)
    noise = run_examples(defence, {"a": np.zeros((examples, 20_000))})["a"]
    assert noise.std() == pytest.approx(0.2 * 0.5 / examples, rel=0.03)


def test_dp_sgd_of_an_update_is_that_of_one_image():
    defence, update = DPSGD(clip=0.5, noise=0.2), make_update()
    one = jax.tree.map(lambda leaf: leaf[None], update)
    assert_trees_close(run(defence, update), run_examples(defence, one))
    quiet = DPSGD(clip=0.5, noise=0.0)
    assert_trees_close(run(quiet, update), run(Clip(norm=0.5), update), 1e-15)


# Fewer bits


def spread(dtype):
    """Numbers over float16's range and beyond, its subnormal ones and ties included."""
    draw = np.random.default_rng(5)
    values = draw.standard_normal(4000) * 10.0 ** draw.uniform(-9, 6, 4000)
    special = [
        0.0,
        -0.0,
        65504,
        65519,
        65520,
        1e6,
        -1e6,
        2**-24,
        2**-25,
        3 * 2**-25,
        2**-14,
        2**-14 - 2**-25,
        1 + 2**-11,
    ]
    return np.concatenate([values, special]).astype(dtype)


@pytest.mark.parametrize("wrap", [lambda act: act, jax.jit], ids=["op by op", "compiled"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name_of_type", ["float16", "bfloat16"])
def test_half_precision_is_torchs(torch, dtype, name_of_type, wrap):
    values = spread(dtype)
    defence = {"float16": Float16, "bfloat16": BFloat16}[name_of_type]()
    # From float64 torch rounds twice, by way of float32: start from numbers that float32 holds.
    values = values.astype(np.float32).astype(dtype)
    wanted = torch.tensor(values).to(getattr(torch, name_of_type)).to(getattr(torch, dtype)).numpy()
    got = wrap(defence.apply)({"a": jnp.asarray(values)}, KEY)["a"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wanted)
    assert np.mean(wanted != values) > 0.9


def test_half_precision_rounds_float64_once():
    values = spread("float64")
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(run(Float16(), values), wanted)


def numpy_quantise(values, bits):
    largest = 2 ** (bits - 1) - 1
    step = np.abs(values).max() / largest
    return np.rint(values / step) * step if step > 0 else values


@pytest.mark.parametrize("bits", [2, 8, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_numpys(bits, dtype):
    update = make_update(dtype=dtype)
    wanted = jax.tree.map(lambda leaf: numpy_quantise(np.asarray(leaf), bits), update)
    got = run(Quantise(bits=bits), update)
    for one, other in zip(leaves(got), leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=10 * np.finfo(dtype).eps)
        assert np.unique(one).size <= 2**bits - 1


def test_int8_is_torchs(torch):
    values = np.random.default_rng(6).standard_normal(5000).astype(np.float32)
    step = float(np.abs(values).max() / np.float32(127))
    wanted = torch.fake_quantize_per_tensor_affine(torch.tensor(values), step, 0, -127, 127).numpy()
    got = run(Quantise(), values)
    # torch multiplies by 1 / s, which may round a number near a tie the other way.
    steps = np.rint((np.asarray(got) - wanted) / step)
    assert np.abs(steps).max() <= 1
    assert np.count_nonzero(steps) <= 2
    np.testing.assert_allclose(np.asarray(got) - steps * step, wanted, atol=1e-6)


def test_int8_has_a_scale_for_each_tensor():
    update = {"a": np.array([1e-6, 3e-7]), "b": np.array([1e3, 5.0])}
    got = run(Quantise(), update)
    np.testing.assert_allclose(got["a"], [1e-6, 38e-6 / 127])
    np.testing.assert_allclose(got["b"], [1e3, 1e3 / 127])


# In a row


def test_defences_act_in_their_order_each_with_its_own_key():
    update = make_update()
    noise, clip, prune = Gaussian(sigma=0.5), Clip(norm=0.1), Prune(share=0.5)

    def key(i):
        return jax.random.fold_in(KEY, i)

    wanted = run(prune, run(clip, run(noise, update, key(0)), key(1)), key(2))
    assert_trees_close(defend((noise, clip, prune), update, KEY), wanted, 1e-14)
    assert np.linalg.norm(flat(defend((noise, clip), update, KEY))) == pytest.approx(0.1)
    assert np.linalg.norm(flat(defend((clip, noise), update, KEY))) > 1
    once, twice = run(noise, update, key(0)), defend((noise, noise), update, KEY)
    assert_trees_close(twice, run(noise, once, key(1)), 1e-14)
    assert np.abs((flat(twice) - flat(once)) - (flat(once) - flat(update))).min() > 1e-6


def test_no_defence_leaves_the_update_as_it_is():
    assert_trees_close(defend((), make_update(), KEY), make_update())


def test_defend_over_a_trial_axis():
    defences = (DPSGD(clip=0.5, noise=0.2), TopK(count=9), Quantise())
    trials, keys = make_update(lead=(3,)), jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(functools.partial(defend, defences)))(trials, keys)
    assert_trees_close(trial(together, 2), defend(defences, trial(trials, 2), keys[2]), 1e-14)
    assert all(0 < np.count_nonzero(flat(trial(together, i))) <= 9 for i in range(3))


def test_dp_sgd_comes_first_and_once():
    private, noise = DPSGD(clip=1.0, noise=0.1), Gaussian(sigma=0.1)
    for allowed in ((), (private,), (private, noise), (noise, noise)):
        check_defences(allowed)
    for refused in ((noise, private), (private, private), (private, noise, private)):
        with pytest.raises(InputError, match=r"dp-sgd acts on the gradient of each image.* first, and only once"):
            check_defences(refused)
        with pytest.raises(InputError, match="dp-sgd"):
            defend(refused, make_update(), KEY)


@pytest.mark.parametrize(
    ("texts", "seen"),
    [
        ([], False),
        (["clip:1"], False),
        (["gaussian:0.1"], False),
        (["prune:0.5"], True),
        (["prune-layer:0.5"], True),
        (["top-k:5"], True),
        (["gaussian:0.1", "prune:0.5"], True),
        (["dp-sgd:1:1", "top-k:5", "clip:0.1", "fp16"], True),
        (["prune:0.5", "gaussian:0.1"], False),
        (["prune:0.5", "clip:1", "laplace:0.1"], False),
    ],
    ids=str,
)
def test_the_mask_is_seen_unless_noise_covers_it(texts, seen):
    defences = tuple(map(parse_defence, texts))
    update = defend(defences, make_update(), KEY)
    mask = sparse_mask(defences, update)
    if not seen:
        assert mask == ()
        return
    assert_trees_close(mask, jax.tree.map(lambda leaf: np.where(leaf == 0, 0.0, 1.0), update))
    assert 0 < flat(mask).sum() < flat(mask).size


def test_the_mask_under_vmap():
    trials, defences = make_update(lead=(3,), dtype="float32"), (TopK(count=5),)

    def mask(update):
        return sparse_mask(defences, defend(defences, update, KEY))

    masks = jax.jit(jax.vmap(mask))(trials)
    assert sum(leaf.reshape(3, -1).sum(1) for leaf in leaves(masks)).tolist() == [5, 5, 5]
    assert {leaf.dtype for leaf in leaves(masks)} == {np.dtype("float32")}


# As text

TEXTS = [
    ("gaussian:0.01", Gaussian(sigma=0.01), "gaussian:0.01"),
    ("gaussian:1", Gaussian(sigma=1.0), "gaussian:1.0"),
    ("gaussian:1e-5", Gaussian(sigma=1e-5), "gaussian:1e-05"),
    ("laplace:0.1", Laplace(sigma=0.1), "laplace:0.1"),
    ("prune:0.9", Prune(share=0.9), "prune:0.9"),
    ("error-feedback:0.9:5", ErrorFeedback(share=0.9, rounds=5), "error-feedback:0.9:5"),
    ("soteria:0.01", Soteria(share=0.01), "soteria:0.01"),
    ("precode", Precode(), "precode"),
    ("precode:64:0.01", Precode(size=64, beta=0.01), "precode:64:0.01"),
    ("prune-layer:0.3", PruneLayer(share=0.3), "prune-layer:0.3"),
    ("top-k:100", TopK(count=100), "top-k:100"),
    ("top-k:1e3", TopK(count=1000), "top-k:1000"),
    ("clip:2", Clip(norm=2.0), "clip:2.0"),
    ("dp-sgd:1.0:0.1", DPSGD(clip=1.0, noise=0.1), "dp-sgd:1.0:0.1"),
    ("fp16", Float16(), "fp16"),
    ("fp16:16", Float16(), "fp16"),
    ("fp16:0", Float16(bits=0), "fp16:0"),
    ("bf16", BFloat16(), "bf16"),
    ("bf16:0", BFloat16(bits=0), "bf16:0"),
    ("int8", Quantise(bits=8), "int8"),
    ("int8:4", Quantise(bits=4), "int8:4"),
    ("int8:0", Quantise(bits=0), "int8:0"),
]


@pytest.mark.parametrize(("text", "defence", "written"), TEXTS, ids=[text for text, *_ in TEXTS])
def test_text_is_read_and_written(text, defence, written):
    assert parse_defence(text) == defence
    assert defence_text(defence) == written
    assert parse_defence(written) == defence
    assert [type(value) for value in vars(parse_defence(text)).values()] == [field.type for field in fields(defence)]


def test_text_covers_every_defence(name):
    assert type(parse_defence(EXAMPLES[name])) in {type(defence) for _, defence, _ in TEXTS}
    for text in (EXAMPLES[name], ZERO[name]):
        defence = parse_defence(text)
        assert isinstance(defence, Defence)
        assert parse_defence(defence_text(defence)) == defence
        assert hash(defence) == hash(parse_defence(text))


def test_text_does_not_depend_on_the_type_of_number():
    assert defence_text(Gaussian(sigma=1)) == defence_text(Gaussian(sigma=np.float64(1))) == "gaussian:1.0"
    assert defence_text(TopK(count=np.int64(5))) == "top-k:5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian:0.1", r"`defence` must be one of bf16, clip, .*; got 'gausian'\. Did you mean 'gaussian'\?"),
        ("", r"`defence` must be one of .*; got ''"),
        ("gaussian", r"`defence` gaussian is written gaussian:SIGMA; got 'gaussian'"),
        ("gaussian:0.1:2", r"is written gaussian:SIGMA; got 'gaussian:0.1:2'"),
        ("dp-sgd:1", r"is written dp-sgd:CLIP:NOISE; got 'dp-sgd:1'"),
        ("fp16:0:1", r"is written fp16\[:BITS\]; got 'fp16:0:1'"),
        ("gaussian:", r"'gaussian:': `sigma` must be a number; got ''. It is written gaussian:SIGMA"),
        ("dp-sgd:1:much", r"'dp-sgd:1:much': `noise` must be a number; got 'much'. It is written dp-sgd:CLIP:NOISE"),
        ("gaussian:-1", r"'gaussian:-1': `sigma` must be 0 or above; got -1.0"),
        ("laplace:nan", r"`sigma` must be 0 or above; got nan"),
        ("clip:inf", r"`norm` must be finite; got inf"),
        ("clip:-1", r"`norm` must be 0 or above"),
        ("dp-sgd:-1:0", r"`clip` must be 0 or above"),
        ("dp-sgd:1:-1", r"`noise` must be 0 or above"),
        ("prune:-0.1", r"`share` must be 0 or above"),
        ("prune:30", r"'prune:30': `share` must be from 0 to 1; got 30.0. For 30 % write 0.3"),
        ("prune-layer:1.1", r"`share` must be from 0 to 1; got 1.1"),
        ("prune:nan", r"`share` must be 0 or above; got nan"),
        ("top-k:2.5", r"'top-k:2.5': `count` must be a whole number; got 2.5"),
        ("top-k:-3", r"`count` must be 0 or above; got -3"),
        ("top-k:inf", r"`count` must be finite; got inf"),
        ("fp16:8", r"'fp16:8': `bits` must be 16, or 0 for off; got 8"),
        ("bf16:nan", r"`bits` must be 16, or 0 for off; got nan"),
        ("int8:1", r"`bits` must be a whole number from 2 to 16, or 0 for off; got 1"),
        ("int8:7.5", r"got 7.5"),
    ],
)
def test_a_mistake_in_the_text_is_explained_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_defence(text)
    assert "\n" not in str(caught.value)
    assert "`defence`" in str(caught.value)


def test_how_each_is_written():
    assert {name: defence_form(name) for name in ("top-k", "dp-sgd", "int8")} == {
        "top-k": "top-k:COUNT",
        "dp-sgd": "dp-sgd:CLIP:NOISE",
        "int8": "int8[:BITS]",
    }
