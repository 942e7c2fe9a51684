"""DAGER: spans against a plain NumPy reading of the paper, whole batches, and what it refuses."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak
from jaxleak.attacks.dager import outside, recover_tokens, second_inputs, seen_by, span
from jaxleak.attacks.presets import DAGER
from jaxleak.models import Transformer
from jaxleak.threat.loss import CrossEntropy, loss_gradient
from tests.commands import refusal
from tests.fixtures import quick_jit

SIZE = 11
FIELDS = {"dim": 24, "heads": 2, "depth": 2, "mlp_ratio": 2.0, "weight_init": "uniform-weights"}


def drawn(model, length: int, seed: int = 0):
    params = quick_jit(model.init)(jax.random.key(seed), jnp.zeros((1, length)))["params"]
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), params)


def gradient_of(model, params, texts, reduction="mean"):
    _, predicted = model.places(texts.shape[1])
    target = jax.nn.one_hot(texts[:, predicted], model.num_classes)
    return loss_gradient(model, params, texts.astype(float), target, CrossEntropy(reduction=reduction))


def recovered(model, texts, reduction="mean") -> tuple[Any, Any, np.ndarray]:
    params = drawn(model, texts.shape[1])

    @quick_jit
    def run(params, texts):
        update = gradient_of(model, params, texts, reduction)
        return update, recover_tokens(model, params, update, texts.shape[1], len(texts), reduction)

    update, found = run(params, texts)
    return params, update, np.asarray(found)


def test_spans_are_those_of_the_inputs():
    """The projection's gradient is sum_i z_i g_i^T, so its columns' span is that of the inputs z_i."""
    model = Transformer(SIZE, **FIELDS)
    texts = np.random.default_rng(0).integers(1, SIZE, (2, 6))
    params = drawn(model, 6)
    update = quick_jit(lambda params, texts: gradient_of(model, params, texts))(params, texts)
    for block in ("blocks.0", "blocks.1"):
        inputs = np.asarray(seen_by(model, params, jnp.asarray(texts, float), (block, "norm1"))).reshape(-1, 24)
        left, sizes, _ = np.linalg.svd(inputs.T, full_matrices=False)
        true = left[:, sizes > 1e-9 * sizes[0]]
        basis = np.asarray(span(update[block]["attn.qkv"]["kernel"], 10))
        np.testing.assert_allclose(basis @ basis.T, true @ true.T, atol=1e-7)
        assert np.max(outside(inputs, basis)) < 1e-12
        others = np.random.default_rng(1).normal(size=(50, 24))
        wanted = 1 - np.sum((others @ true) ** 2, axis=1) / np.sum(others**2, axis=1)
        np.testing.assert_allclose(outside(others, basis), wanted, atol=1e-7)


def test_the_second_blocks_inputs_are_the_networks():
    model = Transformer(SIZE, **FIELDS)
    texts, choices, place = np.array([[3, 5, 1, 0, 0], [2, 7, 4, 0, 0]]), np.array([6, 1, 9]), 3
    params = drawn(model, 6)
    longer = np.repeat(np.pad(texts, [(0, 0), (0, 1)])[:, None], 3, axis=1)
    longer[:, :, place] = choices

    @quick_jit
    def both(params, longer):
        whole = seen_by(model, params, longer, ("blocks.1", "norm1"))[:, place]
        return whole, second_inputs(model, params, texts, place, choices)

    wanted, found = both(params, longer.reshape(6, 6).astype(float))
    np.testing.assert_allclose(np.reshape(found, (6, -1)), wanted, rtol=1e-9, atol=1e-12)


def test_a_batch_is_what_an_exhaustive_search_finds():
    """Every text over the tokens that the first span allows, tested by the second, as the paper defines it."""
    model = Transformer(SIZE, **FIELDS)
    texts = np.array([[3, 5, 5, 2], [3, 7, 5, 9]])
    params, update, found = recovered(model, texts)

    @quick_jit
    def apart(params, update, texts):
        """How far each token lies outside the spans of both blocks."""
        return [
            outside(seen_by(model, params, texts, (block, "norm1")), span(update[block]["attn.qkv"]["kernel"], 6))
            for block in ("blocks.0", "blocks.1")
        ]

    every = np.broadcast_to(np.arange(SIZE, dtype=float)[:, None], (SIZE, 4))
    first = np.asarray(apart(params, update, every)[0])
    allowed = [np.flatnonzero(first[:, place] < 1e-10) for place in range(3)]
    assert {5, 7} <= set(allowed[1].tolist())
    texts_tried = np.array([(*text, 0) for text in itertools.product(*allowed)], float)
    second = apart(params, update, texts_tried)[1]
    kept = texts_tried[np.asarray(second).max(axis=1) < 1e-10][:, :3]
    assert sorted(map(tuple, kept)) == sorted(map(tuple, texts[:, :3]))
    assert sorted(map(tuple, found)) == sorted(map(tuple, texts))


@pytest.mark.parametrize(
    ("task", "reduction", "texts"),
    [
        ("causal", "sum", [[1, 2, 1, 2, 10, 3]]),
        ("masked", "mean", [[4, 4, 1, 2, 10, 3]]),
    ],
)
def test_one_text(task, reduction, texts):
    found = recovered(Transformer(SIZE, task=task, **FIELDS), np.array(texts), reduction)[2]
    np.testing.assert_array_equal(found, texts)


def test_a_sweep_recovers_every_text(tmp_path):
    data = jaxleak.load_dataset("text", length=6)
    victim = jaxleak.make_victim("transformer", data, [0, 8], batch=2, fields={"dim": 32, "depth": 2})
    result = jaxleak.attack(victim, [DAGER], seeds=2, quiet=True, out=tmp_path / "run")
    assert result.success_rate("dager")[0] == 1.0
    for row in result.rows:
        assert (row["tokens_right"], row["rouge1"], row["rouge2"], row["rougel"]) == (1, 1, 1, 1)
        assert row["mse"] == row["relative_error"] == 0
        assert (row["psnr"], row["max_abs"], row["images_recovered"], row["label_correct"]) == (None, None, 2, True)
        assert row["relative_objective"] < 1e-6  # the embeddings' gradient is compared too
    assert result.texts([0]) == {0: ["Alice was beginning", "for the hot day m"]}


REFUSED = ("run", "--out", "RUN", "--attack", "dager")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("", "dager reads tokens; use --model transformer --dataset text, or another attack."),
        ("--dataset text", "`model` transformer and the data set text go together; give both, or neither."),
        ("--model transformer", "`model` transformer and the data set text go together; give both, or neither."),
        (
            "--dataset text --model transformer --batch 5",
            "dager needs more numbers in a token than the batch has tokens; got 64 numbers and 75 tokens. Use a "
            "smaller --batch or --length, or --model-field dim=76.",
        ),
        (
            "--dataset text --model transformer --batch 2 --model-field task=masked",
            "dager reads batches of texts from causal networks of at least 2 blocks; use --batch 1.",
        ),
        (
            "--dataset text --model transformer --label-smoothing 0.1",
            "dager needs plain cross-entropy; leave out label smoothing, class weights and other losses.",
        ),
        (
            "--dataset text --model transformer --client-steps 2",
            "`client_steps` is for pictures; leave it out with the data set text.",
        ),
    ],
)
def test_what_it_cannot_read_is_refused(flags, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(*REFUSED, *flags.split()).removeprefix("jaxleak: ") == complaint
