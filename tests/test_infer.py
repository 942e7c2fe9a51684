"""What updates tell of their batches: words, membership, a property; each beside a plain computation of the same."""

import json
import os
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxleak
from jaxleak.attacks.membership import Residual, membership_features, membership_scores
from jaxleak.attacks.sketch import sketch
from jaxleak.attacks.words import read_words, row_threshold
from jaxleak.errors import InputError, StorageError
from jaxleak.results.figures.roc import roc_curves
from jaxleak.results.intervals import mean_interval, wilson
from jaxleak.results.roc import auc, delong, roc
from jaxleak.runs.infer.own_words import infer_own_words
from jaxleak.runs.infer.properties import framed, grey, mirrored
from jaxleak.runs.infer.questions import Membership, Property, Words
from jaxleak.runs.infer.rows import Rows
from jaxleak.runs.infer.updates import CLIENT, draw_batches, half
from jaxleak.threat.loss import loss_gradient
from tests.commands import call, refusal
from tests.sweeps import Tiny

LENGTH = 8
COLOURED = (8, 8, 3)


@pytest.fixture(scope="module")
def texts():
    return jaxleak.load_dataset("text", length=LENGTH)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Sixty pictures in colours, of three classes."""
    path = tmp_path_factory.mktemp("infer") / "coloured.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (60, *COLOURED), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(60) % 3)
    return path


def text_victim(texts, *defences: str, batch: int = 2, **fields):
    return jaxleak.make_victim(
        "transformer",
        texts,
        list(range(20)),
        batch=batch,
        network="shared",
        fields={"dim": 16, "depth": 1, **fields},
        defences=tuple(map(jaxleak.parse_defence, defences)),
    )


def victim_of(path, *defences: str, batch: int = 3, **more):
    data = jaxleak.load_dataset(path)
    chosen = list(range(0, 60, 2))
    defended = tuple(map(jaxleak.parse_defence, defences))
    victim = jaxleak.make_victim(Tiny(3), data, chosen, batch=batch, network="shared", defences=defended, **more)
    return victim, data


# --- words ---


def test_words_are_the_tokens_that_a_causal_network_reads(texts):
    """All but the last of each text, which is only predicted."""
    victim = text_victim(texts)
    question = Words(victim, 5, seed=3)
    for row in jaxleak.infer(victim, "words", updates=5, seed=3).rows:
        tokens, _ = texts.images(row["texts"])
        read, every = set(tokens[:, :-1].ravel().astype(int)), set(tokens.ravel().astype(int))
        assert (row["tokens"], row["found"], row["right"]) == (len(every), len(read), len(read))
        assert row["recall"] == len(read) / len(every)
        assert (row["precision"], row["threshold"]) == (1.0, 0.0)
    assert question.batches.shape == (5, 2)


def test_a_masked_network_hides_places_and_its_mask_is_no_word(texts):
    for row in jaxleak.infer(text_victim(texts, task="masked"), "words", updates=3).rows:
        tokens, _ = texts.images(row["texts"])
        assert row["right"] == row["found"] == len(set(np.delete(tokens, 3, axis=1).ravel()) - {0})


@pytest.fixture(scope="module")
def update(texts):
    """A gradient of four texts, and the tokens that the network read."""
    victim = text_victim(texts, batch=4, dim=64)
    tokens, _ = texts.images([0, 5, 9, 14])
    params = jaxleak.draw_params(victim.model, jax.random.key(0), (LENGTH,))
    share = jax.jit(lambda x: victim.share(params, x, victim.target_of(x, x[:, -1]), jax.random.key(0)))
    return share(jnp.asarray(tokens, float)), set(tokens[:, :-1].ravel().astype(int))


@pytest.mark.parametrize("defence", ["clip:1", "prune:0.5", "int8", "gaussian:1e-4", "laplace:1e-4"])
def test_words_through_defences(defence, update):
    """Little noise hides nothing; of 512 tokens one may stand out of it, of Laplacian noise a few."""
    gradient, read = update
    defended = jaxleak.parse_defence(defence).apply({"embed": gradient["embed"]}, jax.random.key(1))
    found = set(read_words(np.asarray(defended["embed"]["embedding"])).tokens.tolist())
    assert read <= found
    assert len(found - read) <= {"gaussian:1e-4": 1, "laplace:1e-4": 3}.get(defence, 0)


def test_words_that_noise_hides(update):
    gradient, read = update
    defended = jaxleak.parse_defence("gaussian:10").apply({"embed": gradient["embed"]}, jax.random.key(1))
    found = read_words(np.asarray(defended["embed"]["embedding"]))
    assert len(found.tokens) < 3 < len(read)
    assert 75 < found.threshold < 110  # 10 times the root of 64, and some deviations


def test_the_threshold_is_one_of_the_whole_vocabulary():
    """In noise alone 0.05 rows are expected above it, of rows of 64 numbers a little more."""
    rng = np.random.default_rng(0)
    found = [len(read_words(rng.normal(size=(512, 64))).tokens) for _ in range(200)]
    assert 0.01 < np.mean(found) < 0.25
    assert row_threshold(np.r_[np.zeros(300), np.ones(200)]) == 0
    lengths = rng.normal(5, 0.1, 1001)
    middle, spread = np.median(lengths), 1.4826 * np.median(np.abs(lengths - np.median(lengths)))
    assert row_threshold(lengths, 1001 * 0.0013499) == pytest.approx(middle + 3 * spread, rel=1e-4)


def test_tokens_that_are_never_words():
    gradient = np.zeros((8, 2))
    gradient[[0, 2, 5]] = 1
    assert read_words(gradient).tokens.tolist() == [0, 2, 5]
    assert read_words(gradient, never=(0,)).tokens.tolist() == [2, 5]


# --- membership ---


def test_scores_are_those_of_flat_vectors():
    keys = jax.random.split(jax.random.key(0), 4)
    update = {"a": jax.random.normal(keys[0], (3, 4)), "b": jax.random.normal(keys[1], (5,)), "c": jnp.zeros(2)}
    record = {"a": jax.random.normal(keys[2], (3, 4)), "b": jax.random.normal(keys[3], (5,)), "c": jnp.zeros(2)}
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (update, record))
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    np.testing.assert_allclose(membership_scores(update, record), [cosine, ours @ theirs], rtol=1e-12)
    features = membership_features(update, record)
    u, g = np.asarray(update["b"]), np.asarray(record["b"])
    wanted = [u @ g / np.linalg.norm(u) / np.linalg.norm(g), u @ g / (g @ g), np.linalg.norm(u) / np.linalg.norm(g)]
    np.testing.assert_allclose(features[1::3], wanted, rtol=1e-12)
    assert np.all(features[2::3] == 0)  # a tensor without a gradient


def test_the_residual_is_of_what_others_do_not_explain():
    """By least squares; and of a sum of ten vectors, which common directions drown, one is told from others."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(5, 60)) * 100
    records = rng.normal(size=(100, 5)) @ common + rng.normal(size=(100, 60))
    updates = records.reshape(10, 10, 60).mean(axis=1)
    learned = Residual.of(updates)
    assert learned.basis.shape == (9, 60)
    np.testing.assert_allclose(learned.basis @ learned.basis.T, np.eye(9), atol=1e-12)
    update, record = rng.normal(size=60), rng.normal(size=60)
    left = []
    for each in (update, record):
        apart, about = each - updates.mean(0), (updates - updates.mean(0)).T
        left.append(apart - about @ np.linalg.lstsq(about, apart)[0])
    wanted = left[0] @ left[1] / np.linalg.norm(left[0]) / np.linalg.norm(left[1])
    assert learned.cosine(update, record) == pytest.approx(wanted, abs=1e-10)
    own = rng.normal(size=(40, 5)) @ common + rng.normal(size=(40, 60)) / 10**0.5
    learned = Residual.of(own[:20])
    members = rng.normal(size=(50, 10, 5)) @ common + rng.normal(size=(50, 10, 60))
    others = rng.normal(size=(50, 5)) @ common + rng.normal(size=(50, 60))
    inside = [learned.cosine(batch.mean(axis=0), batch[0]) for batch in members]
    outside = [learned.cosine(batch.mean(axis=0), other) for batch, other in zip(members, others, strict=True)]
    assert auc(np.r_[inside, outside], np.arange(100) < 50) > 0.9


def test_half_of_the_records_are_in_their_batches(coloured):
    victim, data = victim_of(coloured)
    rows = jaxleak.infer(victim, "membership", data, updates=21, own_updates=20).rows
    assert [row["record"] in row["images"] for row in rows] == [row["member"] for row in rows]
    assert sum(row["member"] for row in rows) == 10
    assert {index for row in rows for index in (*row["images"], row["record"])} <= set(victim.indices)
    for row in rows[:1]:  # as a plain computation has it
        images, labels = data.images([*row["images"], row["record"]])
        params = jaxleak.draw_params(victim.model, jax.random.key(0), COLOURED)
        target = victim.target(labels)
        update = loss_gradient(victim.model, params, jnp.asarray(images[:-1], float), target[:-1])
        record = loss_gradient(victim.model, params, jnp.asarray(images[-1:], float), target[-1:])
        assert membership_scores(update, record).tolist() == pytest.approx([row["cosine"], row["inner"]], rel=1e-6)


@pytest.mark.parametrize("others", ["same-label", "any"])
def test_other_records_have_a_label_of_the_batch(others, coloured):
    """Batches of one hold one of three classes: of any record a third has it."""
    victim, data = victim_of(coloured, batch=1)
    rows = jaxleak.infer(victim, "membership", data, others=others, updates=60, own_updates=10).rows
    for row in rows:
        _, labels = data.images([*row["images"], row["record"]])
        assert row["label_in_batch"] == (labels[-1] in labels[:-1])
    shared = [row["label_in_batch"] for row in rows if not row["member"]]
    assert sum(shared) == 30 if others == "same-label" else 3 < sum(shared) < 18


def test_without_another_record_of_the_label_any_is_taken(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.random.default_rng(0).random((12, 4, 4, 1)), labels=np.arange(12))
    data = jaxleak.load_dataset(tmp_path / "own.npz")
    victim = jaxleak.make_victim("mlp", data, range(6), fields={"hidden": (4,)}, network="shared")
    rows = jaxleak.infer(victim, "membership", data, updates=6, own_updates=6).rows
    assert [row["label_in_batch"] for row in rows] == [row["member"] for row in rows]


def test_the_attackers_batches_are_of_other_images(coloured):
    victim, data = victim_of(coloured)
    question = Membership(victim, data, "any", 5, 6, 0)
    assert not set(question.sides[1][0].indices) & set(victim.indices)
    assert len(question.sides[1][1]) == 6


def test_members_of_single_records_are_told_and_noise_hides_them(coloured):
    """A batch of one is its record. Noise far above the gradient leaves chance; so do updates of other data."""
    victim, data = victim_of(coloured, batch=1)
    told = jaxleak.infer(victim, "membership", data, updates=40, own_updates=40).summary["attacks"]
    assert told["cosine"]["auc"] == told["residual"]["auc"] == 1.0
    assert told["logistic"]["auc"] > 0.95
    victim, data = victim_of(coloured, "clip:1", "gaussian:100", batch=1)
    hidden = jaxleak.infer(victim, "membership", data, updates=80, own_updates=80).summary["attacks"]
    for one in hidden.values():
        assert one["ci95"][0] <= 0.5 <= one["ci95"][1]


def test_updates_of_other_data_score_as_chance(coloured):
    """The truth is drawn, and no update holds its record."""
    victim, data = victim_of(coloured)
    question = Membership(victim, data, "any", 120, 60, 0)
    pool, batches, members, records = question.sides[CLIENT]
    apart = np.asarray([np.setdiff1d(np.arange(len(pool)), places)[0] for places in batches])
    question.sides[CLIENT] = pool, batches, members, np.where(members, apart, records)
    rows = [question.row(number) for number in range(120)]
    for name in question.scores:
        low, high = delong(np.asarray([row[name] for row in rows]), members)
        assert low < 0.5 < high or abs(auc(np.asarray([row[name] for row in rows]), members) - 0.5) < 0.2


def test_other_clients_than_one_gradient(coloured):
    """Local steps, and a loss whose targets are vectors."""
    victim, data = victim_of(coloured, batch=2, client=jaxleak.Client(steps=2, lr=0.1))
    rows = jaxleak.infer(victim, "membership", data, others="any", updates=40, own_updates=12).rows
    assert np.mean([row["cosine"] for row in rows if row["member"]]) > np.mean(
        [row["cosine"] for row in rows if not row["member"]]
    )


# --- properties ---


def test_properties_are_given():
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(grey(images)[..., 1], images @ np.asarray([0.299, 0.587, 0.114], np.float32), rtol=1e-5)
    assert np.array_equal(mirrored(mirrored(images)), images)
    assert np.array_equal(mirrored(images)[0, 0, 0], images[0, 0, -1])
    whole = framed(images)
    assert np.all(whole[:, :2] == 1)
    assert np.all(whole[:, :, -2:] == 1)
    assert np.array_equal(whole[:, 2:-2, 2:-2], images[:, 2:-2, 2:-2])


def test_a_sketch_is_the_same_for_all_and_keeps_inner_products():
    tree = {"big": jnp.arange(1000.0), "small": jnp.arange(3.0)}
    short = sketch(tree, most=10)
    assert short.shape == (13,)
    assert np.array_equal(short[10:], [0, 1, 2])
    np.testing.assert_allclose(sketch(jax.tree.map(lambda leaf: 2 * leaf, tree), most=10), 2 * short)
    draws = np.random.default_rng(0).normal(size=(300, 1000))
    short = np.stack([sketch({"a": jnp.asarray(draw)}, most=100) for draw in draws])
    assert np.mean(np.sum(short**2, axis=1)) == pytest.approx(np.mean(np.sum(draws**2, axis=1)), rel=0.05)


def test_a_frame_is_told_and_noise_hides_it(coloured):
    victim, data = victim_of(coloured)
    found = jaxleak.infer(victim, "property", data, property="framed", updates=24, own_updates=60)
    assert found.summary["attacks"]["forest"]["auc"] > 0.95
    assert sum(row["has"] for row in found.rows) == 12
    victim, data = victim_of(coloured, "clip:1", "gaussian:100")
    hidden = jaxleak.infer(victim, "property", data, property="framed", updates=40, own_updates=40)
    for one in hidden.summary["attacks"].values():
        assert one["ci95"][0] <= 0.5 <= one["ci95"][1]
    assert "(chance is within)" in str(hidden)


# --- areas and intervals ---


def test_areas_are_scikit_learns():
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    for _ in range(20):
        members = rng.permutation(np.arange(40) < rng.integers(1, 40))
        scores = np.round(rng.normal(size=40) + members, 1)  # some are equal
        assert auc(scores, members) == pytest.approx(roc_auc_score(members, scores), abs=1e-12)
        false, true = roc(scores, members)
        wanted = roc_curve(members, scores, drop_intermediate=False)
        np.testing.assert_allclose([false, true], wanted[:2], atol=1e-12)
    assert auc([1.0, 1.0], [True, False]) == 0.5


def test_delong_is_the_variance_of_placements_and_covers():
    """By a double loop over pairs; and of 400 samples some 95 % hold the area that they are drawn from."""
    rng = np.random.default_rng(1)
    scores, members = rng.normal(size=30), np.arange(30) < 12
    x, y = scores[members], scores[~members]
    wins = np.asarray([[(a > b) + (a == b) / 2 for b in y] for a in x])
    variance = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    low, high = delong(scores, members)
    assert (high - low) / 2 == pytest.approx(1.959964 * variance**0.5, rel=1e-6)
    members, held = np.arange(100) < 50, 0
    for _ in range(400):
        low, high = delong(rng.normal(size=100) + members, members)
        held += low < 0.76025 < high  # Phi(1 / sqrt 2)
    assert 0.91 < held / 400 < 0.985


def test_without_spread_intervals_are_wilsons():
    members = np.arange(30) < 10
    assert delong(members * 1.0, members) == wilson(10, 10)
    assert delong(-1.0 * members, members) == wilson(0, 10)
    assert mean_interval(np.ones(50)) == wilson(50, 50)
    assert mean_interval(np.zeros(50)) == wilson(0, 50)
    shares = np.random.default_rng(0).random(60)
    low, high = mean_interval(shares)
    assert (high - low) / 2 == pytest.approx(1.96 * shares.std() / 60**0.5, rel=0.05)


@pytest.mark.parametrize("members", [[True, True], [False, False], [True]])
def test_an_area_needs_two_groups(members):
    with pytest.raises(InputError, match="`scores` must be a number for each of `members`, of which some are true"):
        auc([0.1, 0.2], members)


def test_curves_are_drawn(tmp_path):
    members = np.arange(20) < 10
    figure = roc_curves({"cosine": np.arange(20.0)[::-1]}, members, "t", tmp_path / "roc.png")
    (panel,) = figure.axes
    lines = panel.get_lines()
    assert lines[1].get_xydata()[-1].tolist() == [1, 1]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["cosine: 1.00 [0.72, 1.00]"]
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


# --- batches ---


def test_batches_use_everything_before_anything_again():
    rng = np.random.default_rng(0)
    batches = draw_batches(10, 7, 3, rng)
    assert batches.shape == (7, 3)
    for start in (0, 3):
        assert len(set(batches[start : start + 3].ravel())) == 9
    assert all(len(set(places)) == 3 for places in batches)
    assert half(7, rng).sum() == 3


# --- rows: kept, continued, refused ---


def test_a_folder_is_continued_and_other_settings_are_refused(coloured, tmp_path):
    victim, data = victim_of(coloured)
    whole = jaxleak.infer(victim, "membership", data, updates=8, own_updates=10, out=tmp_path / "a")
    file = tmp_path / "a" / "rows.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["update"] for line in lines] == list(range(8))
    file.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[3:5], lines[5][:20]]))  # killed, and struck
    again = jaxleak.infer(victim, "membership", data, updates=8, own_updates=10, out=tmp_path / "a")
    assert again.rows == whole.rows
    assert sorted(json.loads(line)["update"] for line in file.read_bytes().splitlines()) == list(range(8))
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["attacks"]["cosine"]["ci95"]
    assert (tmp_path / "a" / "roc.png").exists()
    with pytest.raises(InputError, match="holds a run with other settings: updates: 8 in the directory, 9 asked"):
        jaxleak.infer(victim, "membership", data, updates=9, own_updates=10, out=tmp_path / "a")
    with pytest.raises(InputError, match='infer: "membership" in the directory, "property" asked'):
        jaxleak.infer(victim, "property", data, updates=8, own_updates=10, out=tmp_path / "a")


def test_what_is_done_is_not_computed_again(coloured, tmp_path, monkeypatch):
    victim, data = victim_of(coloured)
    jaxleak.infer(victim, "property", data, updates=4, own_updates=6, out=tmp_path)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(Property, "row", never)
    assert len(jaxleak.infer(victim, "property", data, updates=4, own_updates=6, out=tmp_path).rows) == 4


def test_a_full_disk_keeps_the_rows_before(tmp_path):
    rows = Rows.open(tmp_path, {"a": 1}, {})
    rows.append({"update": 0})
    rows.path = tmp_path / "gone"
    with pytest.raises(StorageError, match="1 updates are kept") as caught:
        rows.append({"update": 1})
    assert caught.value.rows == [{"update": 1}]
    rows.close()
    again = Rows.open(tmp_path, {"a": 1}, {})
    assert again.ordered() == [{"update": 0}]
    with pytest.raises(InputError, match="another process is writing"):
        Rows.open(tmp_path, {"a": 1}, {})
    again.close()


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same(coloured, tmp_path):
    """Struck while rows are written, by a signal that nothing can catch."""
    flags = ["--dataset", str(coloured), "--batch", "3", "--updates", "60", "--own-updates", "20", "--out"]
    command = [sys.executable, "-m", "jaxleak", "infer", *flags]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, str(tmp_path / "struck")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    file = tmp_path / "struck" / "rows.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, str(tmp_path / "struck")], check=True, capture_output=True)
    whole, struck = ((tmp_path / name / "rows.jsonl").read_text() for name in ("whole", "struck"))
    assert struck == whole


# --- mistakes ---


def test_what_cannot_be_asked_is_refused(coloured, texts, tmp_path, monkeypatch):
    victim, data = victim_of(coloured)
    cases = {
        "`what` must be one of membership, property, words; got 'word'. Did you mean 'words'?": (
            victim,
            "word",
            data,
            {},
        ),
        "`property` must be one of framed, grey, mirrored; got 'gray'.": (
            victim,
            "property",
            data,
            {"property": "gray"},
        ),
        "`others` must be one of any, same-label; got 'same'.": (victim, "membership", data, {"others": "same"}),
        "`what` words needs texts and a network that embeds": (victim, "words", None, {}),
        "`data` must be the data set": (victim, "membership", None, {}),
        "`updates` must be above 0; got 0.": (victim, "membership", data, {"updates": 0}),
        "`own_updates` must be at least 2, as half": (victim, "membership", data, {"own_updates": 1}),
        "`what` property is for pictures; of texts ask for words.": (text_victim(texts), "property", texts, {}),
        "`infer` needs one network for all updates": (
            jaxleak.make_victim(Tiny(3), data, [0, 1]),
            *("membership", data, {}),
        ),
        "`images` leave 0 of": (jaxleak.make_victim(Tiny(3), data, range(60), network="shared"), "property", data, {}),
        "`images` must be more than a batch of 20": (
            jaxleak.make_victim(Tiny(3), data, range(20), batch=20, network="shared"),
            *("membership", data, {}),
        ),
    }
    for words, (client, what, source, more) in cases.items():
        with pytest.raises(InputError) as caught:
            jaxleak.infer(client, what, source, out=tmp_path / "none", **more)
        assert words in str(caught.value)
    assert not (tmp_path / "none").exists()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"which is not installed: pip install 'jaxleak\[infer\]'. --what words"):
        jaxleak.infer(victim, "membership", data)


def test_updates_that_are_not_finite_are_named(coloured):
    victim, data = victim_of(coloured, "gaussian:1e308")
    with pytest.raises(InputError, match=r"an update that is not finite, of tiny with defence gaussian:1e\+308; use"):
        jaxleak.infer(victim, "membership", data, updates=4, own_updates=4)


def test_grey_of_grey_pictures(data):
    victim = jaxleak.make_victim(Tiny(3), data, [0, 1, 2], network="shared")
    with pytest.raises(InputError, match="`property` grey needs pictures with three channels; these have 1"):
        jaxleak.infer(victim, "property", data)


# --- updates of one's own ---


@pytest.fixture
def own(tmp_path):
    """A gradient of a network of ten tokens, of which 2 and 7 were read."""
    rows = np.zeros((10, 4), np.float32)
    rows[[2, 7]] = 0.5
    tensors = {"transformer.wte.weight": rows, "transformer.wpe.weight": np.ones((5, 4), np.float32)}
    save_file({**tensors, "head.weight": np.ones((10, 4), np.float32)}, tmp_path / "grads.safetensors")
    return tmp_path / "grads.safetensors"


def test_words_of_a_file(own, tmp_path):
    found = infer_own_words(own, tmp_path / "out")
    assert found.rows == [{"update": 0, "found": 2, "threshold": 0.0, "found_tokens": [2, 7]}]
    assert "2 of 10 rows have a gradient (longer than 0): 2 7" in str(found)
    (tmp_path / "tokens.txt").write_text("\n".join("abcdefghij"))
    said = call(
        *("infer", "--what", "words", "--update", own, "--vocabulary", tmp_path / "tokens.txt"),
        *("--out", tmp_path / "out"),
    )
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "2 of 10 rows have a gradient (longer than 0): c h",
        f"{tmp_path / 'out'}: rows.jsonl, summary.json",
    ]


def test_words_of_a_gradient_that_torch_made(tmp_path):
    """`nn.Embedding` in a small network, by its own backward pass."""
    torch = pytest.importorskip("torch")
    embed, head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50)
    read = torch.tensor([[3, 9, 9, 41]])
    torch.nn.functional.cross_entropy(head(embed(read))[0], torch.tensor([9, 9, 41, 5])).backward()
    torch.save({"embed.weight": embed.weight.grad, "head.weight": head.weight.grad}, tmp_path / "g.pt")
    assert infer_own_words(tmp_path / "g.pt", None).rows[0]["found_tokens"] == [3, 9, 41]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--update {own} --embedding wte", "`embedding` must be one of head.weight, transformer.wpe.weight, "),
        ("--update {own} --what membership", "`update` is a file of your own, of which --what words is read; got"),
        ("--update {folder}/none.pt", "`update` must be a file of tensors (safetensors, .npz, torch.save); there is"),
        (
            "--update {folder}/plain.npz",
            "`update` has no tensor whose name says embedding of tokens; it has a. Name it",
        ),
        ("--update {folder}/two.npz", "`update` has several tensors whose names say embedding of tokens; it has embed"),
        ("--update {own} --vocabulary {own}", "cannot be read as UTF-8 text"),
        (
            "--update {own} --vocabulary {folder}/short.txt",
            "`vocabulary` must have a line for each of 10 tokens; it has",
        ),
        ("--update {own} --embedding head.bias", "`embedding` must be one of"),
        ("--embedding wte", "`embedding` goes with --update; add that, or leave it out."),
        ("--vocabulary {own}", "`vocabulary` goes with --update; add that, or leave it out."),
        ("--dataset photos", "`what` words needs texts and a network that embeds their tokens: --dataset text --model"),
        ("--dataset text", "`model` transformer and the data set text go together; give both, or neither."),
        ("--what wrods", "`what` must be one of membership, property, words; got 'wrods'. Did you mean 'words'?"),
        ("--what property --property gray", "`property` must be one of framed, grey, mirrored; got 'gray'. Did you"),
        ("--what membership --others same", "`others` must be one of any, same-label; got 'same'."),
        ("--updates 0", "`updates` must be above 0; got 0."),
        ("--num-images -1", "`num_images` must be above 0; got -1."),
        ("--seed -1", "`seed` must be from 0 to 4294967295; got -1."),
        ("--what membership --num-images 2 --batch 3", "`batch` must be at most the client's 2 images; got 3. Use a"),
        ("--what membership --batch 31", "`batch` must be at most the client's 30 images; got 31."),
        ("--defence gausian:1", "got 'gausian'. Did you mean 'gaussian'?"),
    ],
)
def test_wrong_flags(flags, words, own, tmp_path):
    np.savez(tmp_path / "plain.npz", a=np.ones((3, 2)))
    np.savez(tmp_path / "two.npz", embed_a=np.ones((3, 2)), embed_b=np.ones((3, 2)))
    (tmp_path / "short.txt").write_text("a\nb")
    filled = flags.format(own=own, folder=tmp_path).split()
    assert words in refusal("infer", "--what", "words", *filled, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command line ---


def test_the_command_says_and_writes_what_it_found(coloured, tmp_path):
    flags = ("--dataset", coloured, "--batch", 3, "--updates", 50, "--own-updates", 20, "--out", tmp_path / "out")
    said = call("infer", *flags)
    assert said.code == 0, said.err
    assert said.err.splitlines() == [
        "membership: training on 20 updates of the attacker's own",
        "membership: 50/50 updates done",
    ]
    assert "membership: 50 updates, 25 of them with it; area under the ROC curve:" in said.out
    assert f"{tmp_path / 'out'}: rows.jsonl, summary.json, roc.png" in said.out
    again = call("infer", *flags)
    assert (again.code, again.out, again.err) == (0, said.out, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "was written by `jaxleak infer`, which has no trials; see its" in refusal("table", tmp_path / "out")
    assert "seed: 0 in the directory, 1 asked" in refusal("infer", *flags, "--seed", 1)


def test_words_from_the_command_line(tmp_path):
    flags = ("--dataset", "text", "--length", 8, "--model", "transformer", "--model-field", "dim=16", "depth=1")
    said = call("infer", "--what", "words", *flags, "--batch", 2, "--updates", 5, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "share of found ones that are right (precision): 1.000 [0.566, 1.000]" in said.out
    assert not (tmp_path / "out" / "roc.png").exists()
