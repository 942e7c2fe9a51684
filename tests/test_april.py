"""Images from the gradient of a vision transformer with learnt positions."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import InputError, Sweep, load_dataset, make_victim
from jaxleak.attacks.april import find_embedding, patches_by_embedding, recover_from_positions, tokens_by_attention
from jaxleak.attacks.presets import ATTACKS
from jaxleak.models import ViT
from jaxleak.runs.run import run_sweep
from jaxleak.threat.loss import loss_gradient
from tests.commands import case_id
from tests.fixtures import quick_jit
from tests.oracles.parity import some_variables

CLASSES = 3
SHAPE = (8, 12, 3)
FIELDS = {"patch_size": 4, "dim": 64, "heads": 4, "depth": 2, "mlp_ratio": 1.0}


@pytest.fixture(scope="module", params=["pre-norm", "sequential"])
def shared(request):
    """A model, its weights, an image and the gradient."""
    model = ViT(CLASSES, encoder=request.param, **FIELDS)
    params = jax.tree.map(lambda leaf: leaf / 6, some_variables(model, SHAPE)["params"])
    image = np.random.default_rng(0).uniform(size=(1, *SHAPE))
    gradient = quick_jit(lambda p: loss_gradient(model, p, image, jnp.eye(CLASSES)[:1]))(params)
    return model, params, image, jax.tree.map(np.asarray, gradient)


@pytest.mark.parametrize("multiple", [1.0, -1e-160, 1e160])
def test_the_embedding_gives_the_image_away_whatever_the_encoder(shared, multiple):
    model, params, image, gradient = shared
    update = jax.tree.map(lambda leaf: multiple * leaf, gradient)
    sequential = model.encoder == "sequential"
    found = recover_from_positions(update, params, SHAPE, sequential=sequential)
    assert float(jnp.abs(found - image).max()) < 1e-6


def test_the_first_attention_gives_it_away_where_tokens_reach_it_alone(shared):
    """Lu et al., theorem 1, where the embedding is not trained; behind a norm and beside a shortcut it is wrong."""
    model, params, image, gradient = shared
    frozen = {**gradient, "patch_embed.proj": jax.tree.map(np.zeros_like, gradient["patch_embed.proj"])}
    found = recover_from_positions(frozen, params, SHAPE, sequential=True)
    assert (float(jnp.abs(found - image).max()) < 1e-5) == (model.encoder == "sequential")


def test_an_attention_alone():
    """sum_t s_t z_t^T = K (dL/dK)^T, of a loss that reads queries, keys and values."""
    rng = np.random.default_rng(1)
    tokens, qkv = rng.normal(size=(5, 8)), rng.normal(size=(8, 24))

    def loss(tokens, qkv):
        q, k, v = jnp.split(tokens @ qkv, 3, axis=1)
        return jnp.sum(jnp.sin(jax.nn.softmax(q @ k.T) @ v))

    slopes, gradient = jax.grad(loss, argnums=(0, 1))(tokens, qkv)
    for known in (0, 1, 2):
        found = tokens_by_attention(qkv, gradient, slopes, tokens[:known])
        np.testing.assert_allclose(found, tokens[known:], atol=1e-8)


def test_slopes_that_are_dependent_give_the_shortest_solution():
    """Two patches with one slope are told apart by nothing: each comes out as half of their sum."""
    rng = np.random.default_rng(2)
    x, slope = rng.normal(size=(2, 12)), rng.normal(size=6)
    kernel = np.einsum("tp,td->pd", x, np.stack([slope, slope])).reshape(2, 2, 3, 6)
    found = patches_by_embedding(jnp.asarray(kernel), jnp.stack([slope, slope]))
    np.testing.assert_allclose(found, np.stack([x.mean(axis=0)] * 2), atol=1e-10)


def test_nothing_is_found_in_nothing():
    np.testing.assert_array_equal(patches_by_embedding(jnp.zeros((2, 2, 3, 6)), jnp.zeros((4, 6))), np.zeros((4, 12)))


@pytest.mark.parametrize("encoder", ["pre-norm", "sequential"])
def test_the_attack_recovers_photos_and_their_labels(encoder):
    """The models as they are drawn, from the data set to the rows."""
    photos = load_dataset("photos")
    fields = {"depth": 2, "encoder": encoder, "dim": 96}
    victim = make_victim("vit", photos, [6, 41], fields=fields, normalise="cifar100", network="per-image")
    rows = run_sweep(Sweep(victim=victim, attacks=(ATTACKS["april"],), seeds=1), None, quiet=True).rows
    assert len(rows) == 2
    for row in rows:
        assert row["psnr"] > 40
        assert row["label_correct"]


@pytest.mark.parametrize(
    ("model", "fields", "changes", "message"),
    [
        ("lenet", {}, {}, "april needs a model that adds learnt positions to embedded patches, such as vit; got layer"),
        ("vit", {"dim": 60, "depth": 1}, {}, "april needs no more patches than numbers in a token; got 64 patches and"),
        ("vit", {"depth": 1}, {"batch": 2}, "`attack` april reads one image from one gradient; use --batch 1."),
    ],
)  # fmt: skip
def test_where_it_does_not_apply(model, fields, changes, message):
    victim = make_victim(model, load_dataset("photos"), [6, 41], fields=fields, **changes)
    with pytest.raises(InputError) as error:
        Sweep(victim=victim, attacks=(ATTACKS["april"],), seeds=1)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_update_without_positions_is_refused():
    """As of a client that does not train them."""
    photos, model = load_dataset("photos"), ViT(100, depth=1)
    victim = make_victim("vit", photos, [6], fields={"depth": 1}, network="shared")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), some_variables(model, photos.image_shape)["params"])
    victim = replace(victim, params=params, update=params)
    with pytest.raises(InputError, match=r"^april reads the gradient of the positions, pos_embed; it is 0 or missing"):
        Sweep(victim=victim, attacks=(ATTACKS["april"],), seeds=1)


@pytest.mark.parametrize("changes", [{"layers": ("head",)}, {"scale": "per-tensor"}], ids=case_id)
@pytest.mark.parametrize("name", ["analytic", "april", "spear"])
def test_closed_forms_read_tensors_as_they_are(name, changes):
    with pytest.raises(InputError, match=rf"^`start` {name} reads the tensors of the update as they were shared;"):
        replace(ATTACKS[name], **changes)


def test_embeddings_are_known_by_their_shapes():
    """In whatever names: a table of positions, other tokens before the patches', larger windows."""

    def tree(kernel, positions, name="position_table"):
        return {"stem": {"kernel": np.zeros(kernel)}, "body": {name: {"embedding": np.zeros(positions)}}}

    found = find_embedding(tree((4, 4, 3, 8), (6, 8)), SHAPE)
    assert (found.kernel, found.positions, found.count) == (
        ("stem", "kernel"),
        ("body", "position_table", "embedding"),
        6,
    )
    assert find_embedding(tree((8, 6, 3, 8), (1, 5, 8)), SHAPE).count == 2
    for wrong in (((4, 4, 3, 8), (5, 8)), ((4, 4, 3, 8), (6, 9)), ((5, 4, 3, 8), (6, 8)), ((4, 4, 1, 8), (6, 8))):
        with pytest.raises(InputError, match=r"got layers body, stem for 8x12x3 images\.$"):
            find_embedding(tree(*wrong), SHAPE)
    with pytest.raises(InputError, match="adds learnt positions"):
        find_embedding(tree((4, 4, 3, 8), (6, 8), name="table"), SHAPE)


LANES = """
import jaxleak
jaxleak.use_all_cores(2)
victim = jaxleak.make_victim("vit", jaxleak.load_dataset("photos"), [6], fields={"depth": 1})
sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["april"],), seeds=64, snapshots=())
rows = jaxleak.run_sweep(sweep, lanes=64, quiet=True).rows
assert len(rows) == 64 and min(row["psnr"] for row in rows) > 40
"""


@pytest.mark.slow
def test_many_lanes_in_a_pool_of_one_thread():
    """As from the command line: LAPACK's calls for several lanes at once would wait for each other for ever."""
    subprocess.run([sys.executable, "-c", LANES], check=True, timeout=200)
