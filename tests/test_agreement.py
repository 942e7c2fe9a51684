"""Restarts of an audit as rows and arrays tell them: their order, their images' order, what is kept and drawn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxleak.results import agreement
from jaxleak.results.agreement import KEPT, Restarts, restarts, write_best

IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (2, 2, 2, 3))  # [b, h, w, c]


class Stored:
    """A finished run, as far as `restarts` reads it: by trial its objective, images and arrays."""

    def __init__(self, trials: dict[int, dict[str, Any]], batch: int, attacks: dict[int, str] | None = None):
        self.trials = trials
        self.rows = [
            {
                "trial": n,
                "attack": (attacks or {}).get(n, "dlg"),
                "objective": trial["objective"],
                "label_found": n + 50,
            }
            for n, trial in trials.items()
        ]
        self.run = SimpleNamespace(settings={"victim": {"batch": batch}}, arrays=self.arrays)

    def arrays(self, keys=None, trials=None):
        chosen = sorted(self.trials if trials is None else trials)  # as the store has them, not as they are asked for
        assert not set(chosen) - set(self.trials)
        names = [name for name in self.trials[chosen[0]] if name != "objective"]
        found: dict[str, Any] = {name: np.stack([self.trials[n][name] for n in chosen]) for name in names}
        found["trial"] = np.array(chosen)
        return found if keys is None else {key: found[key] for key in keys}

    def reconstructions(self, trials=None):
        return self.arrays(["trial", "candidate"], trials)


def group_in(stored: Stored, attack: str = "dlg") -> Restarts:
    given: Any = stored
    return restarts(given, attack)


def trial(objective: float, images: np.ndarray, **arrays: Any) -> dict[str, Any]:
    return {"objective": objective, "candidate": images, **{name: np.array(array) for name, array in arrays.items()}}


def batch_of_two() -> Any:
    """Of dlg the second is lowest, the first has its images swapped, the third failed, the fourth lacks a label."""
    return Stored(
        {
            3: trial(2.0, IMAGES[::-1], slots=[1, 0], labels_found=[7, 8]),
            4: trial(1.0, IMAGES, slots=[0, 1], labels_found=[5, 6]),
            5: trial(np.nan, IMAGES, slots=[0, 1], labels_found=[5, 6]),
            6: trial(3.0, 0.9 * IMAGES, slots=[-1, 0], labels_found=[4, 9]),
            7: trial(0.1, IMAGES, slots=[0, 1], labels_found=[5, 6]),
        },
        batch=2,
        attacks={7: "idlg"},
    )


def test_restarts_are_in_the_order_of_their_objectives():
    group = group_in(batch_of_two())
    assert group.attack == "dlg"
    assert [row["trial"] for row in group.rows] == [4, 3, 6]
    assert group.total == 4  # the one that failed counts
    assert [row["trial"] for row in group_in(batch_of_two(), "idlg").rows] == [7]


def test_images_and_labels_are_in_the_order_of_the_lowest():
    group = group_in(batch_of_two())
    np.testing.assert_allclose(group.images, [IMAGES, IMAGES, 0.9 * IMAGES])
    np.testing.assert_allclose(group.distances, [[0, 0], [0, 0], [0.1, 0.1]], atol=1e-12)
    # Slots say which label stands for an image of the truth: 8 and 7, swapped with the images; none is -1.
    assert group.labels == [[5, 6], [7, 8], [-1, 4]]


def test_targets_that_were_found_come_before_labels():
    targets = np.array([[[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [0.2, 0.8]]])
    stored = {
        n: trial(objective, images, targets_found=found, slots=[0, 1], labels_found=[0, 1])
        for n, objective, images, found in ((0, 2.0, IMAGES[::-1], targets[1]), (1, 1.0, IMAGES, targets[0]))
    }
    group = group_in(Stored(stored, batch=2))
    assert group.labels == [targets[0].tolist(), targets[1][::-1].tolist()]


def test_one_image_has_the_label_of_its_row():
    stored = Stored({0: trial(2.0, 2 * IMAGES[0]), 1: trial(1.0, IMAGES[0])}, batch=1)
    group = group_in(stored)
    assert group.images.shape == (2, 1, 2, 2, 3)
    assert group.labels == [[51], [50]]
    np.testing.assert_allclose(group.distances, [[0], [1]])


@pytest.mark.parametrize("objective", [np.nan, np.inf])
def test_where_no_restart_is_finite_there_are_no_images(objective):
    group = group_in(Stored({0: trial(objective, IMAGES)}, batch=2))
    assert group.rows == []
    assert group.labels == []
    assert group.total == 1
    assert group.images.shape == (0, 2, 1, 1, 1)
    assert group.distances.shape == (0, 2)


def group_of(attack: str, n: int) -> Restarts:
    rows: Any = [{"trial": 10 + place, "objective": 1.0 + place} for place in range(n)]
    images = np.stack([(place + 1) * IMAGES - 0.5 for place in range(n)])
    return Restarts(attack, rows, images, np.full((n, 2), 0.5), [[place, 1] for place in range(n)], n)


def test_the_best_of_each_attack_are_written_cut_to_pixels(tmp_path):
    kept = write_best(tmp_path, [("dlg", group_of("dlg", KEPT + 1)), ("ig", group_of("ig", 2))])
    assert KEPT == 8
    assert [entry[:4] for entry in kept[-3:]] == [
        ("dlg", 17, 8.0, [7, 1]),
        ("ig", 10, 1.0, [0, 1]),
        ("ig", 11, 2.0, [1, 1]),
    ]
    with np.load(tmp_path / "best.npz") as stored:
        best = dict(stored)
    assert sorted(best) == ["attack", "images", "labels", "objective", "trial"]
    np.testing.assert_array_equal(best["trial"], [*range(10, 18), 10, 11])
    np.testing.assert_array_equal(best["objective"], [*np.arange(1.0, 9), 1, 2])
    np.testing.assert_array_equal(best["attack"], ["dlg"] * 8 + ["ig"] * 2)
    np.testing.assert_array_equal(best["labels"][7], [7, 1])
    assert best["images"].dtype == np.float32
    np.testing.assert_allclose(best["images"][0], np.clip(IMAGES - 0.5, 0, 1), rtol=1e-6)
    np.testing.assert_allclose(best["images"][7], np.clip(8 * IMAGES - 0.5, 0, 1), rtol=1e-6)


def test_nothing_is_written_of_no_restart(tmp_path):
    none = Restarts("dlg", [], np.zeros((0, 2, 1, 1, 1)), np.zeros((0, 2)), [], 4)
    assert write_best(tmp_path, [("dlg", none)]) == []
    assert not list(tmp_path.iterdir())


def test_restarts_that_lack_an_image_are_not_written(tmp_path):
    group = group_of("dlg", 2)
    with pytest.raises(ValueError, match="shorter"):
        write_best(tmp_path, [("dlg", group._replace(images=group.images[:1]))])


def drawn(monkeypatch, tmp_path, kept, truth) -> tuple[list[list[Any]], Any]:
    """The panels of the picture, by line, and its size in inches."""
    from matplotlib.figure import Figure

    figures = []

    class Kept(Figure):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            figures.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    agreement.draw(kept, truth, tmp_path / "best.png")
    assert (tmp_path / "best.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    lines: dict[float, list[Any]] = {}
    for axes in figure.axes:
        lines.setdefault(axes.get_subplotspec().rowspan.start, []).append(axes)
    return [lines[place] for place in sorted(lines)], figure.get_size_inches()


def test_the_picture_has_a_line_for_each_attack(monkeypatch, tmp_path):
    distances = np.array([0.25, 0.125])
    kept = [
        ("dlg", 4, 1e-3, [0], IMAGES[:1], 0 * distances),
        ("dlg", 5, 2e-3, [0], IMAGES[1:], distances),
        ("ig", 6, 3e-3, [0], IMAGES[:1], distances),
    ]
    (first, second), size = drawn(monkeypatch, tmp_path, kept, IMAGES[1:])
    np.testing.assert_allclose(size, [3 * 1.3 + 0.4, 2 * 1.75])  # panels of one size, and room for the attack's name
    assert [axes.get_title() for axes in first] == ["truth", "1.0e-03\nbest", "2.0e-03\n0.25 away"]
    assert [axes.get_title() for axes in second[:2]] == ["truth", "3.0e-03\nbest"]
    assert [axes.get_visible() for axes in first + second] == [True] * 5 + [False]
    assert [line[0].get_ylabel() for line in (first, second)] == ["dlg", "ig"]
    for axes, image in zip(first, IMAGES[[1, 0, 1]], strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), image)
        assert axes.images[0].get_clim() == (0, 1)


def test_the_picture_of_grey_images_without_a_truth(monkeypatch, tmp_path):
    ((only,),), size = drawn(monkeypatch, tmp_path, [("dlg", 4, 1e-3, [0], IMAGES[:1, ..., :1], np.zeros(1))], None)
    np.testing.assert_allclose(size, [1.3 + 0.4, 1.75])
    assert only.get_title() == "1.0e-03\nbest"
    np.testing.assert_allclose(only.images[0].get_array(), IMAGES[0, ..., 0])
