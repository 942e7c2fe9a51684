"""Likelihoods of defended updates against scipy's densities, through trials, and what is refused."""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxleak
from jaxleak import InputError, parse_defence
from jaxleak.attacks.likelihood import TIGHT, negative_log_likelihood
from jaxleak.kernels.outer import Outer
from jaxleak.threat.defences import DEFENCES, ZERO, defend
from tests.commands import call, refusal

KEY = jax.random.key(3)


def make_update(seed=0, zeros=True):
    """Two layers of other sizes; some entries are zero, as behind a ReLU."""
    draw = np.random.default_rng(seed)

    def tensor(scale, *shape):
        values = scale * draw.standard_normal(shape)
        return jnp.asarray(np.where(draw.random(shape) < 0.1, 0, values) if zeros else values)

    return {
        "conv": {"bias": tensor(0.1, 5), "kernel": tensor(0.1, 3, 2, 4)},
        "head": {"bias": tensor(1.0, 5), "kernel": tensor(1.0, 6, 4)},
    }


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def parsed(texts):
    return tuple(map(parse_defence, texts.split()))


def shared_of(texts, clean, key=KEY):
    return defend(parsed(texts), clean, key, lambda: jnp.asarray([2.0, 0.0, 1.0, 5.0, 4.0, 3.0]))


def value(gradient, update, texts):
    return float(negative_log_likelihood(gradient, update, parsed(texts)))


# --- noise: densities of scipy, less what they are at their modes ---


@pytest.mark.parametrize(
    ("texts", "noise"),
    [
        ("gaussian:0.2", stats.norm(scale=0.2)),
        ("laplace:0.2", stats.laplace(scale=0.2 / math.sqrt(2))),
        ("gaussian:0 laplace:0.1 clip:0", stats.laplace(scale=0.1 / math.sqrt(2))),
        ("dp-sgd:100:0.003", stats.norm(scale=0.3)),  # too large a norm to clip
    ],
)
def test_noise_has_scipys_density(texts, noise):
    clean, other = make_update(), make_update(1)
    update = shared_of(texts, clean)
    for candidate in (clean, other):
        apart = flat(update) - flat(candidate)
        wanted = np.mean(noise.logpdf(0) - noise.logpdf(apart))
        assert value(candidate, update, texts) == pytest.approx(wanted, rel=1e-12)


def test_at_the_truth_it_is_a_half_behind_normal_and_one_behind_laplacian_noise():
    clean = {"a": jnp.linspace(-1, 1, 20_000)}
    assert value(clean, shared_of("gaussian:0.1", clean), "gaussian:0.1") == pytest.approx(0.5, abs=0.02)
    assert value(clean, shared_of("laplace:0.1", clean), "laplace:0.1") == pytest.approx(1, abs=0.03)


def clipped(values, norm):
    return values * min(1, norm / np.linalg.norm(values))


@pytest.mark.parametrize(("texts", "scale"), [("clip:0.5 gaussian:0.1", 0.1), ("dp-sgd:0.5:0.2", 0.1)])
def test_candidates_are_clipped_before_noise(texts, scale):
    update, candidate = shared_of(texts, make_update()), make_update(1)
    apart = flat(update) - clipped(flat(candidate), 0.5)
    wanted = np.mean(stats.norm(scale=scale).logpdf(0) - stats.norm(scale=scale).logpdf(apart))
    assert value(candidate, update, texts) == pytest.approx(wanted, rel=1e-12)


def test_of_a_clipped_update_only_the_direction_counts():
    clean, candidate = make_update(), make_update(1)
    update = shared_of("clip:0.5", clean)
    one, twice = (value(jax.tree.map(lambda leaf, f=f: f * leaf, candidate), update, "clip:0.5") for f in (1, 2))
    assert one == pytest.approx(twice, rel=1e-12)
    g, u = flat(candidate), flat(clean)
    cosine = g @ u / np.linalg.norm(g) / np.linalg.norm(u)
    assert one == pytest.approx((1 - cosine) / TIGHT**2, rel=1e-9)  # |u| / n is a root mean square, squared
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, clean)
    assert value(small, update, "clip:0.5") > 1e3  # which would not have been clipped


def test_without_defence_it_is_a_multiple_of_squared_l2():
    clean, candidate = make_update(), make_update(1)
    u = flat(clean)
    wanted = np.sum((flat(candidate) - u) ** 2) / np.sum(u**2) / 2 / TIGHT**2
    assert value(candidate, clean, "") == pytest.approx(wanted, rel=1e-12)
    for off in ZERO.values():
        assert value(candidate, clean, off) == pytest.approx(wanted, rel=1e-12)


# --- pruning and rounding: the nearest update that would have become what was shared ---


def tight(update):
    return TIGHT * np.sqrt(np.mean(flat(update) ** 2))


@pytest.mark.parametrize("texts", ["prune:0.6", "top-k:20", "error-feedback:0.6:1"])
@pytest.mark.parametrize("noise", ["", "gaussian:0.2 ", "laplace:0.2 "])
def test_what_was_pruned_is_no_larger_than_what_was_kept(texts, noise):
    clean, candidate = make_update(), make_update(1)
    update = shared_of(noise + texts, clean)
    u, g = flat(update), flat(candidate)
    threshold = np.abs(u[u != 0]).min()
    assert threshold > 0.05
    apart = np.where(u != 0, g - u, np.sign(g) * np.maximum(np.abs(g) - threshold, 0))
    family = stats.laplace(scale=0.2 / math.sqrt(2)) if "laplace" in noise else stats.norm(scale=0.2)
    family = family if noise else stats.norm(scale=tight(update))
    wanted = np.mean(family.logpdf(0) - family.logpdf(apart))
    assert value(candidate, update, noise + texts) == pytest.approx(wanted, rel=1e-9)
    if not noise:
        assert value(clean, update, texts) == 0


def test_each_tensor_has_its_threshold():
    clean, candidate = make_update(), make_update(1)
    update = shared_of("prune-layer:0.6", clean)
    total = 0
    for u, g in zip(jax.tree.leaves(update), jax.tree.leaves(candidate), strict=True):
        u, g = np.asarray(u), np.asarray(g)
        threshold = np.abs(u[u != 0]).min()
        apart = np.where(u != 0, g - u, np.sign(g) * np.maximum(np.abs(g) - threshold, 0))
        total += np.sum(apart**2) / 2 / tight(update) ** 2
    assert value(candidate, update, "prune-layer:0.6") == pytest.approx(total / flat(update).size, rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_integer_stands_for_its_cell(bits):
    clean, candidate = make_update(), make_update(1)
    update = shared_of(f"int8:{bits}", clean)
    total = 0
    for u, g, c in zip(*map(jax.tree.leaves, (update, candidate, clean)), strict=True):
        step = float(jnp.abs(c).max()) / (2 ** (bits - 1) - 1)
        apart = np.maximum(np.abs(np.asarray(g - u)) - step / 2, 0)
        total += np.sum(apart**2) / 2 / (step**2 / 12 + tight(update) ** 2)
    assert value(candidate, update, f"int8:{bits}") == pytest.approx(total / flat(update).size, rel=1e-9)
    assert value(clean, update, f"int8:{bits}") < 1e-12


@pytest.mark.parametrize(("text", "kind"), [("fp16", np.float16), ("bf16", None)])
def test_half_precision_stands_for_what_rounds_to_it(text, kind):
    """numpy's `spacing` is the distance of neighbouring float16; that of bfloat16 is 2^16 times float32's."""
    clean, candidate = make_update(), make_update(1)
    update = shared_of(text, clean)
    u, g = flat(update), flat(candidate)
    spacing = np.spacing(np.abs(u).astype(kind or np.float32)).astype(float) * (1 if kind else 2**16)
    if not kind:
        spacing = np.where(u == 0, 0, spacing)
    apart = np.maximum(np.abs(g - u) - spacing / 2, 0)
    wanted = np.mean(apart**2 / 2 / (spacing**2 / 12 + tight(update) ** 2))
    assert value(candidate, update, text) == pytest.approx(wanted, rel=1e-9)
    assert value(clean, update, text) == 0


def test_entries_that_error_feedback_sent_had_gathered():
    clean = make_update()
    update = shared_of("error-feedback:0.6:4", clean)
    assert value(clean, update, "error-feedback:0.6:4") == pytest.approx(0, abs=1e-9)
    assert value(clean, update, "prune:0.6") > 1e3
    u, g = flat(update), flat(make_update(1))
    threshold = np.abs(u[u != 0]).min()
    low = np.where(u == 0, -threshold, np.where(u > 0, u / 4, u))
    high = np.where(u == 0, threshold, np.where(u > 0, u, u / 4))
    wanted = np.mean((g - np.clip(g, low, high)) ** 2) / 2 / tight(update) ** 2
    assert value(make_update(1), update, "error-feedback:0.6:4") == pytest.approx(wanted, rel=1e-9)


def test_rows_that_soteria_hid_may_be_anything():
    clean = make_update(zeros=False)
    update = shared_of("soteria:0.5", clean)
    hidden = np.all(np.asarray(update["head"]["kernel"]) == 0, axis=1)
    assert hidden.sum() == 3

    def moved(rows):
        kernel = clean["head"]["kernel"].at[rows].add(7.0)
        return value({**clean, "head": {**clean["head"], "kernel": kernel}}, update, "soteria:0.5")

    assert moved(np.flatnonzero(hidden)) == 0
    assert moved(np.flatnonzero(~hidden)) > 1e3


ALONE = [
    *("gaussian:0.1", "laplace:0.1", "prune:0.5", "prune-layer:0.5", "top-k:9", "error-feedback:0.5:3", "soteria:0.5"),
    *("precode:8", "clip:0.3", "dp-sgd:0.5:0.1", "fp16", "bf16", "int8"),
]
TOGETHER = ("gaussian:0.1 prune:0.5 int8", "prune:0.5 clip:1 laplace:0.1", "clip:1 int8 gaussian:0.1", "prune:0.5 int8")


@pytest.mark.parametrize("texts", [*ALONE, *TOGETHER])
def test_slopes_are_finite_and_lead_to_the_truth(texts):
    """Also of float32, of products that are not built, over lanes, and of zeros."""
    assert {text.split(":")[0] for text in ALONE} == set(DEFENCES)
    clean, candidate = (jax.tree.map(jnp.float32, make_update(seed)) for seed in (0, 1))
    update = shared_of(texts, clean)
    distance = functools.partial(negative_log_likelihood, update=update, defences=parsed(texts))
    both = jax.jit(jax.vmap(jax.value_and_grad(distance)))
    values, slopes = both(jax.tree.map(lambda *parts: jnp.stack(parts), clean, candidate))
    assert np.all(np.isfinite(values))
    assert values[0] < values[1]
    for lane, gradient in enumerate((clean, candidate)):
        alone, slope = jax.value_and_grad(distance)(gradient)
        assert values[lane] == pytest.approx(float(alone), rel=1e-5, abs=1e-7)
        largest = np.abs(flat(slope)).max()
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda leaf, n=lane: leaf[n], slopes)), flat(slope), atol=1e-4 * largest
        )
        assert np.all(np.isfinite(flat(slope)))
    step = 1e-2 * flat(jax.tree.map(jnp.subtract, clean, candidate))
    assert flat(jax.grad(distance)(candidate)) @ step < 0
    left, right = jnp.ones((2, 6)), jnp.arange(8.0).reshape(2, 4)
    kept, built = ({**clean, "head": {**clean["head"], "kernel": k}} for k in (Outer(left, right), left.T @ right))
    assert distance(kept) == pytest.approx(float(distance(built)), rel=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, clean)
    empty = negative_log_likelihood(nothing, shared_of(texts, nothing), parsed(texts))
    assert np.isfinite(float(empty))


# --- an attacker ---

PHOTOS = jaxleak.load_dataset("photos")
LIKELY = replace(jaxleak.ATTACKS["bayes"], name="likely", tv=0.0, max_evaluations=60, iterations=60)


def victim_of(*defences, **fields):
    defences = tuple(parse_defence(each) if isinstance(each, str) else each for each in defences)
    return jaxleak.make_victim("lenet", PHOTOS, [6], network="shared", defences=defences, **fields)


def test_trials_on_lanes_equal_one_alone_and_the_row_has_the_likelihood():
    with jax.enable_x64(True):
        victim = victim_of("gaussian:0.001", "prune:0.5", defence_draw="per-trial")
        few = replace(LIKELY, max_evaluations=6)
        lanes, alone = (
            jaxleak.run_sweep(jaxleak.Sweep(victim=victim, attacks=(few,), seeds=3), lanes=n, quiet=True)
            for n in (3, 1)
        )
    for row, other in zip(*(sorted(each.rows, key=lambda row: row["seed"]) for each in (lanes, alone)), strict=True):
        assert row["objective"] == pytest.approx(other["objective"], rel=1e-9)
        assert row["objective_kind"] == "likelihood"
        assert row["relative_objective"] == row["objective"]


@pytest.mark.slow
def test_it_recovers_an_image_behind_noise_and_an_undefended_one():
    for defences in ((), ("gaussian:1e-4",)):
        result = jaxleak.attack(victim_of(*defences), replace(LIKELY, max_evaluations=900), seeds=2, quiet=True)
        best = min(result.rows, key=lambda row: row["objective"])
        assert best["psnr"] > 20
        assert best["objective"] < (0.6 if defences else 3)


def test_weights_of_terms_do_not_make_another_program():
    sweeps = [
        jaxleak.Sweep(victim=victim_of("gaussian:0.001"), attacks=(replace(LIKELY, tv=tv),), seeds=1)
        for tv in (0.0, 0.1, 0.2)
    ]
    none, first, second = (sweep.trial(sweep.attacks[0]) for sweep in sweeps)
    assert none.key != first.key == second.key
    assert float(first.shared().weights["tv"]) == pytest.approx(0.1)
    rows = [jaxleak.run_sweep(sweep, quiet=True).rows[0] for sweep in sweeps]
    assert len({row["psnr"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("defences", "words"),
    [
        (("gaussian:0.1", "laplace:0.1"), "is of one noise"),
        (("gaussian:0.1", "clip:1"), "is of one noise"),
        (("soteria:0.5", "gaussian:0.1"), "hides which features soteria hid"),
    ],
)
def test_chains_without_a_likelihood_are_refused(defences, words):
    with pytest.raises(InputError, match=words):
        jaxleak.Sweep(victim=victim_of(*defences), attacks=(LIKELY,), seeds=1)


def test_settings_that_do_not_go_with_it():
    for changes in ({"scale": "relative"}, {"layers": ("head",)}, {"logarithm": True}):
        with pytest.raises(InputError, match="leave out `scale`, `logarithm` and `layers`"):
            replace(LIKELY, **changes)
    several = jaxleak.make_victim("lenet", PHOTOS, [6, 12], batch=2, defences=(parse_defence("dp-sgd:1:0.1"),))
    with pytest.raises(InputError, match="of updates of one image"):
        jaxleak.Sweep(victim=several, attacks=(replace(LIKELY, label="counts"),), seeds=1)


def test_the_command_line(tmp_path):
    common = ("--num-images", 1, "--seeds", 1, "--max-evaluations", 3, "--no-figures", "--no-report")
    said = call("run", "--attack", "bayes", *common, "--defence", "laplace:0.001", "prune:0.3", "--out", tmp_path / "a")
    assert said.code == 0, said.err
    (row,) = jaxleak.Run.open(tmp_path / "a").rows()
    assert (row["attack"], row["objective_kind"]) == ("bayes", "likelihood")
    said = call("run", "--attack", "idlg", "--objective", "likelihood", *common, "--out", tmp_path / "b")
    assert said.code == 0, said.err
    refused = refusal(
        *("run", "--attack", "bayes", *common, "--defence", "gaussian:1e-3", "gaussian:1e-3", "--out", tmp_path / "c")
    )
    assert "is of one noise" in refused
    assert not (tmp_path / "c").exists()


# --- a defence of one's own ---


def uniform(update, key):
    """Uniform noise."""
    leaves, tree = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + jax.random.uniform(k, leaf.shape, leaf.dtype, -0.1, 0.1) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def penalty(shared, clean):
    beyond = jax.tree.map(lambda u, g: jnp.sum(jnp.square(jnp.maximum(jnp.abs(u - g) - 0.1, 0))), shared, clean)
    return -sum(jax.tree.leaves(beyond))


def says(function, **attributes):
    """A function like this one, which says this of itself."""

    def other(update, key):
        return function(update, key)

    for name, part in attributes.items():
        setattr(other, name, part)
    return other


def halve(update):
    return jax.tree.map(lambda leaf: leaf / 2, update)


def test_an_own_likelihood_is_used():
    from jaxleak.threat.own_defence import own_defence

    defence = own_defence(says(uniform, log_likelihood=penalty))
    clean, candidate = make_update(), make_update(1)
    update = defend((defence,), clean, KEY)
    assert float(negative_log_likelihood(clean, update, (defence,))) == 0
    beyond = np.maximum(np.abs(flat(update) - flat(candidate)) - 0.1, 0)
    wanted = np.mean(beyond**2)
    assert float(negative_log_likelihood(candidate, update, (defence,))) == pytest.approx(wanted, rel=1e-12)
    before = (parse_defence("clip:0.5"), defence)  # what stands before it is done to candidates
    wanted = np.mean(np.maximum(np.abs(flat(update) - clipped(flat(candidate), 0.5)) - 0.1, 0) ** 2)
    assert float(negative_log_likelihood(candidate, update, before)) == pytest.approx(wanted, rel=1e-12)
    assert defence.name != own_defence(uniform).name
    assert (
        defence.name != own_defence(says(uniform, log_likelihood=lambda shared, clean: 2 * penalty(shared, clean))).name
    )


def test_one_that_does_not_draw_is_done_to_candidates():
    from jaxleak.threat.own_defence import own_defence

    defence = own_defence(halve)
    candidate, update = make_update(1), halve(make_update())
    wanted = np.mean((flat(candidate) / 2 - flat(update)) ** 2) / 2 / tight(update) ** 2
    assert float(negative_log_likelihood(candidate, update, (defence,))) == pytest.approx(wanted, rel=1e-12)
    noisy = (defence, parse_defence("gaussian:0.1"))
    wanted = np.mean((flat(candidate) / 2 - flat(update)) ** 2) / 2 / 0.01
    assert float(negative_log_likelihood(candidate, update, noisy)) == pytest.approx(wanted, rel=1e-12)


def test_an_own_mask_leaves_entries_out():
    from jaxleak.threat.defences import sparse_mask
    from jaxleak.threat.own_defence import own_defence

    def replaced(update, key):
        """A third of the entries replaced by 9."""
        leaves, tree = jax.tree.flatten(update)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree,
            [
                jnp.where(jax.random.bernoulli(k, 1 / 3, leaf.shape), 9.0, leaf)
                for leaf, k in zip(leaves, keys, strict=True)
            ],
        )

    replaced.mask = lambda shared: jax.tree.map(lambda leaf: leaf != 9, shared)
    defence = own_defence(replaced)
    clean, candidate = make_update(), make_update(1)
    update = defend((defence,), clean, KEY)
    kept = flat(update) != 9
    assert 0.5 < kept.mean() < 0.8
    np.testing.assert_array_equal(flat(sparse_mask((defence,), update)), kept.astype(float))
    assert float(negative_log_likelihood(clean, update, (defence,))) == 0
    apart = np.where(kept, flat(candidate) - flat(update), 0)
    wanted = np.mean(apart**2) / 2 / tight(update) ** 2
    assert float(negative_log_likelihood(candidate, update, (defence,))) == pytest.approx(wanted, rel=1e-12)


def of_bias(function):
    """A likelihood that is this of one tensor."""
    return {"log_likelihood": lambda shared, clean: function(clean["head"]["bias"])}


def counted(bias):
    return jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, bias[0])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "draws, and does not say how likely an update is"),
        ({"log_likelihood": 3.0}, "has the attribute log_likelihood, which must be a function"),
        ({"log_likelihood": lambda shared, clean: clean}, "returns one number; it returned a value of type dict"),
        (of_bias(lambda bias: bias), "one number; it returned an array of shape"),
        (of_bias(lambda bias: jnp.sum(bias > 0)), "of shape .. and type int"),
        (of_bias(lambda bias: jnp.log(-1 - jnp.square(bias[0]))), "must be finite"),
        (of_bias(lambda bias: jnp.sqrt(jnp.sum(0 * bias))), "must be finite"),
        (of_bias(lambda bias: jnp.sum(jnp.round(bias))), "derivative is 0 everywhere"),
        (of_bias(counted), "must be differentiable in its second update: Reverse-mode"),
        (of_bias(lambda bias: np.sum(np.asarray(bias))), "written with jax.numpy"),
    ],
)
def test_what_a_likelihood_may_not_be(said, words):
    with pytest.raises(InputError, match=words) as caught:
        jaxleak.Sweep(victim=victim_of(says(uniform, **said)), attacks=(LIKELY,), seeds=1)
    assert "\n" not in str(caught.value)


def test_a_mask_that_noise_covers_says_nothing():
    masked = says(uniform, mask=lambda shared: shared)
    jaxleak.Sweep(victim=victim_of(masked), attacks=(LIKELY,), seeds=1)
    with pytest.raises(InputError, match="draws, and does not say how likely"):
        jaxleak.Sweep(victim=victim_of(masked, "gaussian:0.1"), attacks=(LIKELY,), seeds=1)


def test_an_own_likelihood_comes_last():
    victim = victim_of(says(uniform, log_likelihood=penalty), "int8")
    with pytest.raises(InputError, match="must be the last defence"):
        jaxleak.Sweep(victim=victim, attacks=(LIKELY,), seeds=1)


def test_the_example_of_the_readme_runs(tmp_path):
    from tests.test_readme import PROJECT

    text = (PROJECT / "jaxleak" / "threat" / "README.md").read_text()
    (file,) = [block for block in text.split("```python\n") if block.startswith("# uniform.py")]
    (tmp_path / "uniform.py").write_text(file.partition("```")[0])
    said = call(
        *(
            "run",
            "--attack",
            "bayes",
            "--defence",
            f"{tmp_path / 'uniform.py'}:uniform",
            "--num-images",
            1,
            "--seeds",
            1,
        ),
        *("--max-evaluations", 5, "--no-figures", "--no-report", "--out", tmp_path / "run"),
    )
    assert said.code == 0, said.err
    (row,) = jaxleak.Run.open(tmp_path / "run").rows()
    assert row["defence"].startswith("uniform.py:uniform@")
