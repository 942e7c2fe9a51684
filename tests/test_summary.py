"""Verdicts, intervals and the summary against published values, brute force and simulation."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from jaxleak.errors import InputError
from jaxleak.results.intervals import fisher, mean_interval, wilson, within_k
from jaxleak.results.summary import current_summary, expected_trials, summarise
from jaxleak.results.verdict import STATUSES, Criteria, classify
from tests.stores import commit, create

GOOD = {
    "ending": "objective",
    "objective": 1e-5,
    "relative_error": 0.1,
    "max_abs": 1.0,
}
FAILED = GOOD | {
    "ending": "iteration-limit",
    "objective": 3.0,
    "relative_error": 1.5,
}

CASES = [
    (GOOD, {}, "converged"),
    (GOOD, {"ending": "stalled"}, "converged"),
    (GOOD, {"ending": "iteration-limit"}, "converged"),
    (GOOD, {"relative_error": 0.2}, "wrong-image"),
    (GOOD, {"relative_error": math.inf}, "wrong-image"),
    (GOOD, {"relative_error": math.nan}, "wrong-image"),
    (GOOD, {"relative_error": math.nan, "knows_truth": False}, "matched"),
    (GOOD, {"objective": 1e-4, "knows_truth": False}, "iteration-limit"),
    (GOOD, {"max_abs": 1e16, "relative_error": 1e16}, "wrong-image"),
    (GOOD, {"objective": 1e-4}, "iteration-limit"),
    (GOOD, {"objective": 5.0, "ending": "stalled"}, "stalled"),
    (GOOD, {"objective": 5.0, "ending": "iteration-limit", "max_abs": 1e16}, "diverged"),
    (GOOD, {"objective": math.nan}, "non-finite"),
    (GOOD, {"ending": "non-finite"}, "non-finite"),
    (GOOD, {"max_abs": math.nan}, "non-finite"),
    (GOOD, {"max_abs": math.inf}, "non-finite"),
    (FAILED, {}, "iteration-limit"),
    (FAILED, {"ending": "stalled"}, "stalled"),
    (FAILED, {"max_abs": 100.0}, "iteration-limit"),
    (FAILED, {"max_abs": 100.5}, "diverged"),
    (FAILED, {"max_abs": 1e16, "ending": "stalled"}, "diverged"),
    (FAILED, {"objective": math.inf}, "non-finite"),
    (FAILED, {"objective": math.nan, "ending": "stalled"}, "non-finite"),
]


@pytest.mark.parametrize(("base", "change", "status"), CASES)
def test_classify(base, change, status):
    assert classify(**base | change, criteria=Criteria()) == status


def test_classify_reaches_every_status():
    assert {status for *_, status in CASES} == set(STATUSES) - {"lost"}  # which the scheduler of a cluster says


def test_classify_follows_the_criteria():
    strict = Criteria(objective=1e-6, relative_error=0.01, diverged_above=0.5)
    assert classify(**GOOD, criteria=strict) == "diverged"
    assert classify(**GOOD | {"objective": 1e-7}, criteria=strict) == "wrong-image"


def test_classify_refuses_an_unknown_ending():
    with pytest.raises(InputError, match="Did you mean 'stalled'"):
        classify(**GOOD | {"ending": "staled"}, criteria=Criteria())


@pytest.mark.parametrize("name", ["objective", "relative_error", "diverged_above"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1e-4", None, True])
def test_criteria_refuse_bad_thresholds(name, value):
    with pytest.raises(InputError, match=f"`{name}` must be a finite number above 0; got "):
        Criteria(**{name: value})


@pytest.mark.parametrize("value", [(), 0.1, "0.1", (0.1, -1)])
def test_criteria_refuse_bad_mse_thresholds(value):
    with pytest.raises(InputError, match="`mse_thresholds` must be"):
        Criteria(mse_thresholds=value)


def test_criteria_survive_json():
    criteria = Criteria(objective=1e-3)
    assert Criteria(**json.loads(json.dumps(dataclasses.asdict(criteria)))) == criteria
    assert hash(criteria) == hash(Criteria(objective=1e-3))


# Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score, no continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_solves_the_score_equation(confidence):
    """Its ends are where |p^ - p| equals z standard errors at p."""
    from scipy.stats import norm

    z = norm.ppf((1 + confidence) / 2)
    for successes, n in [(1, 10), (17, 50), (680, 1000)]:
        for p in wilson(successes, n, confidence):
            assert abs(successes / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), rel=1e-9)


def test_wilson_at_the_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
    assert wilson(np.int64(3), np.int64(5)) == wilson(3, 5)


@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (50, 0.68), (50, 0.1), (1000, 0.68)])
def test_wilson_covers_at_its_rate(n, p):
    draws = np.random.default_rng(1).binomial(n, p, size=20_000)
    intervals = {successes: wilson(successes, n) for successes in set(draws.tolist())}
    coverage = np.mean([low <= p <= high for low, high in map(intervals.get, draws.tolist())])
    assert 0.93 < coverage < 0.975  # discrete: it swings around 0.95 (Brown, Cai & DasGupta 2001)


def test_wrong_counts_are_refused():
    for successes, n in [(-1, 5), (6, 5), (1, 0)]:
        with pytest.raises(InputError, match="between 0 and the number of trials"):
            wilson(successes, n)
    for confidence in (95, 0, 1):
        with pytest.raises(InputError, match=f"`confidence` must lie between 0 and 1; got {confidence}"):
            wilson(1, 2, confidence=confidence)
    for counts in [(6, 5, 1, 5), (1, 5, 6, 5), (-1, 5, 1, 5), (1, 5, -1, 5)]:
        with pytest.raises(InputError, match="between 0 and the number of trials"):
            fisher(*counts)
    for k in (0, 6):
        with pytest.raises(InputError, match="`k` must lie between 1 and the number of trials, 5"):
            within_k(2, 5, k)


@pytest.mark.parametrize(("successes", "n"), [(0, 6), (1, 6), (3, 7), (7, 7)])
def test_within_k_equals_enumeration(successes, n):
    trials = [i < successes for i in range(n)]
    for k in range(1, n + 1):
        assert within_k(successes, n, k) == pytest.approx(np.mean([*map(any, itertools.combinations(trials, k))]))


def test_within_k_is_unbiased():
    n, k, p = 12, 4, 0.3
    weights = [math.comb(n, s) * p**s * (1 - p) ** (n - s) for s in range(n + 1)]
    expectation = sum(weight * within_k(s, n, k) for s, weight in enumerate(weights))
    assert expectation == pytest.approx(1 - (1 - p) ** k)


def test_within_k_of_many_trials_is_finite():
    assert within_k(1, 5000, 2500) == pytest.approx(0.5)


def test_fisher_equals_enumeration():
    """Sum of the probabilities of all tables with these margins that are no likelier than the one seen."""
    for s1, n1, s2, n2 in [(3, 10, 8, 10), (34, 50, 30, 50), (0, 5, 5, 5), (1, 40, 9, 20)]:
        total = s1 + s2
        range_ = range(max(0, total - n2), min(n1, total) + 1)
        ways = {s: math.comb(n1, s) * math.comb(n2, total - s) for s in range_}
        expected = sum(w for w in ways.values() if w <= ways[s1]) / sum(ways.values())
        assert fisher(s1, n1, s2, n2) == pytest.approx(expected, rel=1e-9)
    assert fisher(0, 0, 3, 5) == fisher(3, 5, 0, 0) == 1.0


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959964), (0.5, 0.67449)])
def test_the_interval_of_a_mean_is_that_of_normal_means(confidence, z):
    """Of many shares; half its width is z standard errors."""
    shares = np.random.default_rng(1).uniform(0, 1, 400)
    low, high = mean_interval(shares, confidence)
    error = np.std(shares) / np.sqrt(400)
    assert (high - low) / 2 == pytest.approx(z * error, rel=0.05)
    assert (high + low) / 2 == pytest.approx(np.mean(shares), abs=0.1 * error)


def test_the_interval_of_a_mean_of_few_shares():
    """Its ends are means of samples: ten thousand of them, of 0 and 1 half and half."""
    assert mean_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert mean_interval(np.array([0.0, 1.0]), 0.4) == (0.5, 0.5)  # half of the samples have one of each
    shares = np.array([0.0, 0.25, 0.5])
    means = np.random.default_rng(0).choice(shares, (10_000, 3)).mean(axis=1)
    assert mean_interval(shares) == (np.quantile(means, 0.025), pytest.approx(np.quantile(means, 0.975)))
    shares = np.random.default_rng(3).uniform(size=9)
    means = np.random.default_rng(0).choice(shares, (10_000, 9)).mean(axis=1)
    assert mean_interval(shares) == pytest.approx(np.quantile(means, (0.025, 0.975)), rel=1e-9)
    for shares, won in [(np.ones(7), 7), (np.zeros(7), 0)]:
        assert mean_interval(shares) == wilson(won, 7)
        assert mean_interval(shares, 0.8) == wilson(won, 7, 0.8)


# --- summary ----------------------------------------------------------------------------------------------


def row(trial, **changes):
    """A converged trial, or what `changes` make of it."""
    base = {
        "attack": "dlg", "model": "lenet", "dataset": "photos", "image": 3, "trial": trial,
        "status": "converged", "objective": 1e-5, "threshold_iterations": 10 + trial,
        "threshold_evaluations": 100 + trial, "label_correct": True, "mse": 2e-4, "psnr": 37.0,
    } | changes  # fmt: skip
    return base | {"success": base["status"] == "converged"}


def failed(trial, status="iteration-limit", **changes):
    base = {"objective": 2.0, "threshold_iterations": None, "threshold_evaluations": None, "mse": 0.5, "psnr": 3.0}
    return row(trial, status=status, **base | {"label_correct": False} | changes)


ROWS = [
    failed(0, image=7),
    row(1),
    failed(2, "non-finite", objective=math.nan, mse=math.nan),
    row(3, objective=1e-6, mse=8e-3),
    failed(4, "diverged", mse=1e32),
    row(5, image=7),
    row(6, attack="idlg", image=7),
    failed(7, "wrong-image", objective=1e-9, label_correct=True),
    failed(8, "stalled", image=7, objective=1e-7),
]


def groups(rows=ROWS, **options):
    summary = summarise(rows, Criteria(), **options)
    return {(g["attack"], g["image"]): g for g in summary["groups"]}


@pytest.mark.parametrize(("labels", "known"), [((-1, -1), False), ((-1, 4), True), ((3, 4), True), ((0, -1), True)])
def test_labels_are_known_where_a_row_has_one(labels, known):
    assert groups([row(trial, label=label) for trial, label in enumerate(labels)])["dlg", 3]["labels_known"] is known


@pytest.mark.parametrize(("objective", "mse", "known"), [(1e-5, math.nan, False), (math.nan, math.nan, True)])
def test_the_truth_is_unknown_where_a_finite_trial_has_no_error(objective, mse, known):
    rows = [row(0), row(1, objective=objective, mse=mse)]
    assert groups(rows)["dlg", 3]["truth_known"] is known


def test_summary_of_an_image():
    group = groups()["dlg", 3]
    assert (group["model"], group["dataset"]) == ("lenet", "photos")
    assert (group["trials"], group["successes"], group["success_rate"]) == (5, 2, 0.4)
    assert group["ci95"] == list(wilson(2, 5))
    assert (group["iterations_mean"], group["iterations_median"], group["iterations_n"]) == (12, 12, 2)
    assert (group["evaluations_mean"], group["evaluations_median"]) == (102, 102)
    assert group["label_accuracy"] == 0.6
    assert group["status"] == {
        "converged": 2, "wrong-image": 1, "matched": 0,
        "iteration-limit": 0, "stalled": 0, "diverged": 1, "non-finite": 1, "lost": 0,
    }  # fmt: skip
    assert group["mse_below"] == {"0.01": 0.4, "0.005": 0.2, "0.001": 0.2, "0.0005": 0.2, "0.0001": 0.0}
    assert group["selected"] == {"trial": 7, "objective": 1e-9, "mse": 0.5, "psnr": 3.0, "success": False}
    assert group["oracle"] == {"trial": 1, "objective": 1e-5, "mse": 2e-4, "psnr": 37.0, "success": True}
    assert group["within_k"] == pytest.approx({"1": 0.4, "2": 0.7, "4": 1.0})


def test_counts_to_the_threshold_are_those_of_the_successes():
    """A wrong image may meet the objective, too; it is in every rate, and in no count."""
    rows = [row(1), row(3), failed(7, "wrong-image", threshold_iterations=900, threshold_evaluations=9000)]
    group = groups(rows)["dlg", 3]
    assert (group["iterations_mean"], group["iterations_median"], group["iterations_n"]) == (12, 12, 2)
    assert (group["evaluations_mean"], group["evaluations_median"]) == (102, 102)
    assert (group["trials"], group["success_rate"]) == (3, 2 / 3)


def test_summary_over_images():
    group = groups()["dlg", None]
    assert (group["trials"], group["successes"]) == (8, 3)
    assert sum(group["status"].values()) == 8
    assert group["selected"] == {"images": 2, "success_rate": 0.0}
    assert group["oracle"] == {"images": 2, "success_rate": 1.0}
    third = groups([*ROWS, failed(30, image=9), failed(31, image=9)])["dlg", None]
    assert third["oracle"] == {"images": 3, "success_rate": 2 / 3}
    # k reaches the fewest trials of an image (3 for image 7); averaged over images, not over trials
    assert group["within_k"] == pytest.approx({"1": (0.4 + 1 / 3) / 2, "2": (0.7 + 2 / 3) / 2})


def test_groups_are_ordered_by_attack_as_they_came_then_image_then_all():
    assert list(groups()) == [("dlg", 3), ("dlg", 7), ("dlg", None), ("idlg", 7), ("idlg", None)]
    backwards = list(groups([*reversed(ROWS)]))
    assert backwards == [("dlg", 3), ("dlg", 7), ("dlg", None), ("idlg", 7), ("idlg", None)]
    idlg_first = list(groups([ROWS[6], *ROWS, row(9, dataset="mnist")]))
    assert idlg_first[0] == ("idlg", 7)


def test_no_success_gives_nulls():
    group = groups([failed(0), failed(1, "non-finite", objective=math.inf, mse=math.inf)])["dlg", 3]
    assert group["success_rate"] == 0
    assert group["iterations_n"] == 0
    for name in ("iterations_mean", "iterations_median", "evaluations_mean", "evaluations_median"):
        assert group[name] is None
    assert group["within_k"] == {"1": 0, "2": 0}


def test_nothing_finite_selects_nothing():
    nothing = [failed(i, "non-finite", objective=math.nan, mse=math.inf) for i in range(3)]
    found = groups(nothing)
    assert found["dlg", 3]["selected"] is None
    assert found["dlg", 3]["oracle"] is None
    assert found["dlg", None]["selected"] == {"images": 1, "success_rate": 0.0}


def test_summary_is_strict_json_and_complete_only_with_all_trials():
    numpy_rows = [{k: np.float32(v) if k in ("objective", "mse") else v for k, v in r.items()} for r in ROWS]
    engine = {"evaluations": np.int64(5), "seconds": math.nan, "utilisation": np.float32(0.5)}
    summary = summarise(numpy_rows, Criteria(), expected=10, engine=engine, settings_hash="abc")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["complete"], summary["trials_expected"], summary["settings_hash"]) == (False, 10, "abc")
    assert summary["engine"] == {
        "evaluations": 5, "seconds": None, "evaluations_per_second": None, "utilisation": 0.5,
        "compile_seconds": None,
        "host_share": None,
    }  # fmt: skip
    assert Criteria(**summary["criteria"]) == Criteria()
    assert summarise(ROWS, Criteria(), expected=9)["complete"]
    assert summarise(ROWS, Criteria())["trials_expected"] == 9
    assert summarise([], Criteria())["groups"] == []


def test_the_summary_of_a_run_as_it_stands(tmp_path, monkeypatch):
    """What the rows do not tell is taken from `summary.json` where that is whole, and of as many rows."""
    monkeypatch.setattr("jaxleak.results.summary.check_readable", lambda run: None)  # run.json names few settings
    settings = {
        "victim": {"images": [1, 2, 3, 4], "batch": 2},
        "attacks": [{"name": "a"}, {"name": "b"}],
        "seeds": 3,
        "criteria": dataclasses.asdict(Criteria()),
    }
    assert expected_trials(settings) == 12
    assert expected_trials(settings | {"victim": {"images": [1, 2, 3, 4]}}) == 24
    run = create(tmp_path, settings)
    commit(run, range(12))
    engine = {"evaluations": 5, "seconds": None, "utilisation": 0.5}
    written = current_summary(run) | {"engine": engine, "warnings": ["a word"]}
    assert written["complete"]
    assert written["shards"] is None

    def told(**changes):
        (tmp_path / "summary.json").write_text(json.dumps(written | changes))
        summary = current_summary(run)
        return summary["engine"]["utilisation"], summary["warnings"]

    assert told() == (0.5, ["a word"])
    assert told(engine=None) == (None, ["a word"])
    found = told(warnings=None)[1]  # older than warnings: what the rows show
    assert found != ["a word"]
    groups = [group | {"trials": 11} for group in written["groups"]]
    assert told(groups=groups) == (0.5, found)  # older than the rows
    damages = ({"engine": ["fast"]}, {"engine": {"utilisation": "fast"}}, {"groups": [3]})
    for damage in (*damages, {"warnings": [3]}, {"warnings": "one"}):
        assert told(**damage) == (None, found)
    (tmp_path / "summary.json").write_text("{")
    assert current_summary(run)["warnings"] == found
    assert current_summary(run)["engine"]["utilisation"] is None
