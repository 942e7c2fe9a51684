"""DLG and TAG on text: what a candidate is, what is compared, whole runs with their page, and what is refused."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxleak
from jaxleak.attacks.candidate import Texts, Tokens
from jaxleak.attacks.objectives import l1_distance
from jaxleak.attacks.presets import ATTACKS, DAGER, DLG, TAG
from jaxleak.attacks.trial import Trial
from jaxleak.kernels.outer import Outer
from jaxleak.results.figures.texts import words
from jaxleak.threat.victim import Victim
from tests.commands import refusal
from tests.fixtures import quick_jit
from tests.trials import job

READ = {"label": "counts", "scale": "per-tensor"}
FIELDS = {"dim": 16, "heads": 2, "depth": 1, "mlp_ratio": 1.0, "weight_init": "uniform"}


def victim_of(length=6, images=(0,), fields=FIELDS, **settings) -> Victim:
    data = jaxleak.load_dataset("text", length=length)
    return jaxleak.make_victim("transformer", data, list(images), fields=fields, **settings)


def begun(attack, victim) -> tuple[Trial, dict, dict]:
    """The trial, its problem and the parts of its start."""
    trial = Trial(attack=attack, victim=victim, threshold=1e-4)
    trial.check()
    shared = trial.shared()

    def begin(shared, which):
        problem = trial.prepare(shared, which)
        return problem, trial.attacker.start(shared, which, problem)

    return trial, *jax.tree.map(np.asarray, quick_jit(begin)(shared, job()))


@pytest.mark.parametrize("task", ["causal", "masked"])
def test_true_vectors_and_logits_are_the_text_with_an_objective_of_zero(task):
    victim = victim_of(fields={**FIELDS, "task": task})
    trial, problem, start = begun(DLG, victim)
    _, predicted = victim.model.places(6)
    tokens = np.asarray(victim.images).astype(int)
    parts = {
        "embeddings": problem.book[tokens][:, : start["embeddings"].shape[1]],
        "label": 40.0 * jax.nn.one_hot(tokens[:, predicted], victim.num_classes),
    }
    assert jax.tree.map(np.shape, parts) == jax.tree.map(np.shape, start) == trial.attacker.shapes

    def measure(problem, parts):
        candidate = trial.attacker.candidate
        return candidate.to_truth(parts, problem.book), trial.attacker.values(trial.shared(), problem, parts)

    found, values = quick_jit(measure)(problem, parts)
    np.testing.assert_array_equal(found, victim.images)
    assert values.published < 1e-20
    assert np.any(np.asarray(quick_jit(measure)(problem, start)[0]) != victim.images)
    assert not np.any(problem.update["embed"]["embedding"])  # of which a vector that is no token's has no part


def test_starts_are_as_wide_as_the_embeddings_and_logits_say_which_tokens_there_are():
    victim = victim_of(images=(3,))
    _, problem, joint = begun(DLG, victim)
    _, _, read = begun(replace(DLG, **READ), victim)
    assert np.std(joint["embeddings"]) == pytest.approx(np.std(problem.book), rel=0.25)
    np.testing.assert_array_equal(joint["embeddings"], read["embeddings"])
    apart = np.asarray(read["label"] - joint["label"])[0]
    true, counts = np.unique(np.asarray(victim.images)[0, 1:].astype(int), return_counts=True)
    np.testing.assert_allclose(apart[:, true], np.broadcast_to(np.log(counts), (5, len(true))), atol=1e-9)
    others = np.setdiff1d(np.arange(victim.num_classes), true)
    np.testing.assert_allclose(apart[:, others], np.log(1e-3))


def test_closed_forms_compare_all_weights():
    assert Texts.kind(DAGER) is Tokens
    assert Texts.kind(DLG) is Texts
    _, problem, start = begun(DAGER, victim_of(length=8))
    np.testing.assert_array_equal(start["tokens"], victim_of(length=8).images)
    assert np.any(problem.update["embed"]["embedding"])


def test_tags_term_is_its_definition():
    rng = np.random.default_rng(0)
    tree = {"a": {"kernel": rng.normal(size=(2, 3))}, "b": {"bias": rng.normal(size=4)}, "c": {"x": rng.normal(size=2)}}
    other = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), tree)
    each = {
        name: sum(np.abs(np.ravel(leaf - other[name][part])).sum() for part, leaf in layer.items())
        for name, layer in tree.items()
    }
    assert l1_distance(tree, other) == pytest.approx(sum(each.values()))
    assert l1_distance(tree, other, ("b", "a")) == pytest.approx(each["a"] / 2 + each["b"] + each["c"])
    factors = {"a": {"kernel": Outer(rng.normal(size=(5, 2)), rng.normal(size=(5, 3)))}}
    built = {"a": {"kernel": factors["a"]["kernel"].build()}}
    assert l1_distance(factors, {"a": tree["a"]}) == pytest.approx(float(l1_distance(built, {"a": tree["a"]})))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """TAG with tokens that are read, for some steps, and DAGER, on a text of eight tokens."""
    folder = tmp_path_factory.mktemp("text") / "run"
    attacks = [replace(TAG, name="tag-counts", iterations=12, **READ), DAGER]
    victim = victim_of(length=8, images=(3,), network="shared")
    return jaxleak.attack(victim, attacks, seeds=2, out=folder, quiet=True, snapshots=(0, 5, 10))


def test_a_run_has_rows_texts_and_rates(run):
    by_attack = {row["attack"]: row for row in run.rows}
    assert set(by_attack) == {"tag-counts", "dager"}
    for row in run.rows:
        assert row["relative_error"] == pytest.approx(8 * row["mse"])
        assert row["tokens_right"] == pytest.approx(1 - row["mse"])
        assert row["success"] == (row["relative_error"] == 0 and row["objective"] < 1e-4)
        assert row["psnr"] is row["ssim"] is None
    assert by_attack["dager"]["success"]
    assert by_attack["tag-counts"]["iterations"] == 12
    texts = run.texts([by_attack["dager"]["trial"]])
    assert list(texts.values()) == [["but it had no pictures"]]
    rate, (low, high), n = run.success_rate("dager")
    assert (rate, n) == (1.0, 2)
    assert 0.3 < low < high <= 1
    group = next(group for group in run.summary["groups"] if group["attack"] == "dager" and group["image"] is None)
    assert group["label_accuracy"] == 1.0


def test_the_page_shows_texts_side_by_side(run):
    html = run.report().read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])
    (image,) = data["images"]
    assert "".join(image["texts"][0]).strip() == "but it had no pictures"
    shown = {data["runs"][0]["series"][int(id)]: picture for id, picture in data["pictures"].items()}
    labels = [series["label"] for series in data["series"]]
    tag, dager = (shown[labels.index(name)] for name in ("tag-counts", "dager"))
    assert [len(tag[name]) for name in ("at", "texts", "tokens_right", "rougel")] == [4] * 4
    assert tag["at"] == [0, 5, 10, 12]
    assert dager["texts"][-1] == image["texts"]
    assert dager["tokens_right"] == [1.0]
    assert [name for name, *_ in data["series"][0]["likeness"]] == ["tokens_right", "rougel"]
    assert "1 text of text, 8 tokens each" in html
    assert "every token of every text right" in html


def test_figures_are_drawn(run):
    assert [path.name for path in run.plot()] == ["recovery.png", "convergence.png", "success_by_image.png"]
    found = words([0.0, 1, 2], [0.0, 2, 2], ["▁a", "b", "▁c"])
    assert found == [("a", True), ("b", False), (" c", True)]


REFUSED = ("run", "--dataset", "text", "--model", "transformer", "--out", "RUN")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--attack idlg", "`label` idlg is not for this attack on text; use joint or counts or counts-published with"),
        ("--attack dlg --label known", "`label` known is not for this attack on text; use joint"),
        ("--attack dlg --start black", "`start` black is for pictures; of text use normal, uniform."),
        ("--attack dlg --tv 0.1", "`tv` is for pictures; leave it out with the data set text."),
        ("--attack dlg --box True", "`box` is for pictures; leave it out with the data set text."),
        ("--attack dlg --length 1", "`length` must be at least 2, a token and the next; got 1."),
        (
            "--attack dlg --length 3 --model-field task=masked",
            "`length` must be at least 4 for a masked network; got 3.",
        ),
        ("--attack dlg --image-size 32", "`image_size` is for pictures; leave it out with the data set text."),
        ("--attack dlg --normalise mnist", "`normalise` is for pictures; leave it out with the data set text."),
        ("--attack dlg --loss mse", "`loss` of text must be cross-entropy; got mse."),
        ("--attack dlg --clients 2 --batch 2", "`clients` is for pictures; leave it out with the data set text."),
        ("--attack dlg --dataset photos --length 8", "`length` is the number of tokens of a text; leave it out with"),
        ("--attack dlg --images 449", "`images` index 449 is not in text; the valid range is 0 to 44"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(*REFUSED, *flags.split()).startswith(f"jaxleak: {complaint}")


def test_pictures_do_not_go_into_a_language_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal("risk", "--model", "transformer", "--dataset", "text", "--out", "RISK")
    assert said.endswith("`risk` is for pictures; attack text by `jaxleak run --attack dager`.")


@pytest.mark.slow
def test_dlg_recovers_texts_of_sixteen_tokens():
    """With weights from U(-0.5, 0.5), and the tokens read from the head's gradient."""
    victim = victim_of(length=16, images=(0, 90), fields={"weight_init": "uniform"})
    attack = replace(ATTACKS["dlg"], iterations=100, **READ)
    result = jaxleak.attack(victim, [attack], seeds=4, quiet=True)
    assert result.success_rate("dlg")[0] >= 0.5
