"""Figures: the right pixels, curves and words in the picture, for whole, partial and odd runs."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from jaxleak.errors import InputError
from jaxleak.results.figures import whole_run
from jaxleak.results.figures.grid import choose_trials, recovery_grid
from jaxleak.results.figures.rates import mse_shares, success_by_image
from jaxleak.results.figures.style import COLUMN_INCHES, DPI, FAILED, PAGE_INCHES
from jaxleak.results.figures.traces import FAILED_LINES, convergence, hold_last, trace_quantiles
from jaxleak.results.figures.whole_run import draw_all
from jaxleak.results.intervals import wilson
from jaxleak.results.store.columns import COLUMNS
from jaxleak.results.store.run import Run
from jaxleak.results.summary import summarise
from jaxleak.results.verdict import Criteria

SNAPSHOTS = [0, 5, 10, 20, 40]
ITERATIONS = 60
EXAMPLE = {"string": "x", "int64": 3, "double": 0.25, "bool": True}
ENDS = {"converged": 30, "wrong-image": 25, "iteration-limit": ITERATIONS, "stalled": 12, "diverged": 18}


def make_truth(images, shape=(8, 8, 3)):
    pixels = np.random.default_rng(0).random((len(images), *shape), np.float32)
    return {"image": np.asarray(images), "label": np.arange(len(images)), "pixels": pixels}


def make_row(trial, image, status, *, attack="dlg", model="lenet", dataset="cifar100", objective=None):
    solved, iterations = status == "converged", ENDS.get(status, 7)
    low, high = (1e-8, 1e-5) if status in ("converged", "wrong-image") else (1e-2, 1e2)
    value = float(np.exp(np.random.default_rng(trial).uniform(np.log(low), np.log(high))))
    value = float("nan") if status == "non-finite" else value
    return {name: EXAMPLE[kind] for name, kind, *_ in COLUMNS} | {
        "attack": attack,
        "model": model,
        "dataset": dataset,
        "image": image,
        "trial": trial,
        "status": status,
        "success": solved,
        "objective": value if objective is None else objective,
        "iterations": iterations,
        "threshold_iterations": iterations - 5 if solved else None,
        "threshold_evaluations": 20 * iterations if solved else None,
        "mse": value,
        "psnr": float("nan") if status == "non-finite" else 40.0 if solved else 9.0,
    }


def make_rows(images=(7, 3), seeds=6, statuses=("converged", "converged", "iteration-limit"), attacks=("dlg",)):
    trials = [(attack, image, seed) for attack in attacks for image in images for seed in range(seeds)]
    return [
        make_row(trial, image, statuses[seed % len(statuses)], attack=attack)
        for trial, (attack, image, seed) in enumerate(trials)
    ]


def make_arrays(rows, truth, snapshots=SNAPSHOTS):
    """Candidates that are each recognisable, and traces that fall from 10 to the row's objective."""
    n, shape, times = len(rows), truth["pixels"].shape[1:], np.arange(ITERATIONS + 1)
    rng = np.random.default_rng(1)
    traces = np.full((n, ITERATIONS + 1), np.nan, np.float32)
    for trace, row in zip(traces, rows, strict=True):
        end, final = row["iterations"], row["objective"] if np.isfinite(row["objective"]) else 1.0
        trace[: end + 1] = 10 * (final / 10) ** (times[: end + 1] / end)
    candidate = rng.normal(0.5, 0.5, (n, *shape)).astype(np.float32)
    return {
        "trial": np.array([row["trial"] for row in rows]),
        "candidate": candidate,
        "snapshots": rng.integers(0, 256, (n, len(snapshots), *shape), np.uint8),
        "objective_trace": traces,
        "mse_trace": traces / 100,
    }


def summary_of(rows, **options):
    return summarise(rows, Criteria(), **options)


def texts(figure):
    words = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        if not axes.axison:
            continue  # a picture: its ticks are not drawn
        words += [text.get_text() for text in (*axes.texts, axes.title, *axes.get_xticklabels())]
        words += [axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()]
        legend = axes.get_legend()
        words += [text.get_text() for text in legend.get_texts()] if legend else []
    return words


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def cell_of(path, figure, label):
    """The part of the PNG that an image in the grid covers; the first with this label."""
    axes = next(axes for axes in figure.axes if axes.get_label() == label)
    picture = pixels_of(path)
    box = axes.get_position()
    height, width = picture.shape[:2]
    top, bottom = round((1 - box.y1) * height), round((1 - box.y0) * height)
    return picture[top:bottom, round(box.x0 * width) : round(box.x1 * width)]


def assert_shows(cell, pixels):
    """Every pixel of the image fills a whole square of the cell with its own colour."""
    expected = np.round(255 * np.clip(pixels, 0, 1)).astype(int)
    expected = np.broadcast_to(expected, (*expected.shape[:2], 3))
    times = cell.shape[0] // expected.shape[0]
    assert cell.shape[0] == times * expected.shape[0]
    np.testing.assert_array_equal(cell, np.kron(expected, np.ones((times, times, 1), int)))


# --- which trials ---------------------------------------------------------------------------------------


def ranks(rows, **options):
    blocks = choose_trials(rows, make_truth([7, 3, 5, 9]), **options)
    return {(block.image, block.key[0]): [(rank, row["trial"]) for rank, row in block.lines] for block in blocks}


def test_best_median_and_worst_are_by_objective_among_the_finite():
    values = [5.0, float("nan"), 1.0, 3.0, float("inf"), 2.0, 4.0]
    rows = [make_row(trial, 7, "stalled", objective=value) for trial, value in enumerate(values)]
    rows.append(make_row(7, 7, "non-finite", objective=0.0))  # its last finite objective is no result
    assert ranks(rows) == {(7, "dlg"): [("best", 2), ("median", 3), ("worst", 0)]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0], [("only trial", 0)]),
        ([2.0, 1.0], [("best", 1), ("worst", 0)]),
        ([float("nan"), 1.0], [("only finite", 1)]),
        ([float("nan"), float("inf")], [("no finite trial", 0)]),
    ],
)
def test_few_trials_are_shown_once_each(values, expected):
    rows = [make_row(trial, 7, "stalled", objective=value) for trial, value in enumerate(values)]
    assert ranks(rows) == {(7, "dlg"): expected}


def test_images_come_in_the_order_of_the_truth_and_can_be_chosen():
    rows = make_rows(images=(9, 5, 3, 7), attacks=("dlg", "idlg"))
    assert list(ranks(rows)) == [(7, "dlg"), (7, "idlg"), (3, "dlg"), (3, "idlg")]
    assert list(ranks(rows, images=[9])) == [(9, "dlg"), (9, "idlg")]
    assert list(ranks(rows[:24])) == [(7, "dlg"), (3, "dlg"), (5, "dlg")]
    assert list(ranks(rows[:8])) == [(5, "dlg"), (9, "dlg")]


@pytest.mark.parametrize("images", [[4], [], [7, 4]])
def test_an_image_that_is_not_there_is_named(images):
    with pytest.raises(InputError, match=r"`images` .*\(7, 3\); got \["):
        choose_trials(make_rows(), make_truth([7, 3]), images)


# --- the grid -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8, 3), (28, 28, 1), (6, 12, 3)])
def test_grid_holds_the_true_image_the_snapshots_and_the_candidate(tmp_path, shape):
    rows, truth = make_rows(images=(7,)), make_truth([3, 7], shape)
    arrays, path = make_arrays(rows, truth), tmp_path / "grid.png"
    figure = recovery_grid(rows, arrays, truth, SNAPSHOTS, path)
    assert_shows(cell_of(path, figure, "true"), truth["pixels"][1])
    (best, row) = choose_trials(rows, truth)[0].lines[0]
    assert (best, row["status"]) == ("best", "converged")
    i = rows.index(row)
    assert_shows(cell_of(path, figure, f"{row['trial']}@final"), arrays["candidate"][i])
    assert_shows(cell_of(path, figure, f"{row['trial']}@10"), arrays["snapshots"][i, 2] / 255)


def test_grid_words_say_attack_image_rank_status_iterations_and_psnr(tmp_path):
    rows, truth = make_rows(images=(7,)), make_truth([7])
    words = texts(recovery_grid(rows, make_arrays(rows, truth), truth, SNAPSHOTS))
    assert "dlg, image 7" in words
    assert "best\nconverged\n30 it., 40.0 dB" in words
    assert "worst\niteration-limit\n60 it., 9.0 dB" in words
    assert [word for word in words if word.isdigit()] == ["0", "5", "10", "20", "40"]
    assert words.count("true") == words.count("final") == 1


def test_grid_leaves_places_after_a_trials_end_empty():
    rows, truth = make_rows(images=(7,)), make_truth([7])
    figure = recovery_grid(rows, make_arrays(rows, truth), truth, SNAPSHOTS)
    labels = {axes.get_label() for axes in figure.axes}
    best, _, worst = (row["trial"] for _, row in choose_trials(rows, truth)[0].lines)
    assert {f"{best}@20", f"{best}@final", f"{worst}@40", f"{worst}@final"} <= labels
    assert f"{best}@40" not in labels


def test_grid_drops_columns_after_every_end_and_spreads_many():
    rows, truth = make_rows(images=(7,), statuses=("converged",)), make_truth([7])
    many = list(range(ITERATIONS + 1))
    figure = recovery_grid(rows, make_arrays(rows, truth, many), truth, many, columns=4)
    assert [word for word in texts(figure) if word.isdigit()] == ["0", "10", "19", "29"]


@pytest.mark.parametrize("without", ["list", "array"])
def test_grid_without_snapshots_shows_final_candidates(without):
    rows, truth = make_rows(images=(7,)), make_truth([7])
    arrays = make_arrays(rows, truth)
    if without == "array":
        del arrays["snapshots"]
    figure = recovery_grid(rows, arrays, truth, [] if without == "list" else SNAPSHOTS)
    assert len(figure.axes) == 4  # the true image and three candidates
    assert "iteration" not in texts(figure)


def test_grid_shows_a_broken_candidate_as_grey(tmp_path):
    rows, truth = [make_row(0, 7, "non-finite")], make_truth([7])
    arrays, path = make_arrays(rows, truth), tmp_path / "grid.png"
    arrays["candidate"][:] = np.nan
    figure = recovery_grid(rows, arrays, truth, SNAPSHOTS, path)
    assert set(cell_of(path, figure, "0@final").ravel()) == {128}
    assert "no finite trial\nnon-finite\n7 it., no PSNR" in texts(figure)


@pytest.mark.parametrize(("side", "most"), [(28, 300_000), (32, 300_000), (224, 1_500_000)])
def test_full_grid_stays_small_on_the_disk_and_within_a_page(tmp_path, side, most):
    images, channels = [7, 3, 5, 9], 1 if side == 28 else 3
    truth = make_truth(images, (side, side, channels))
    truth["pixels"][:] = np.linspace(0, 1, side)[None, :, None, None]  # photographs are smooth; starts are noise
    rows = make_rows(images, attacks=("dlg", "idlg"))
    arrays = make_arrays(rows, truth)
    arrays["candidate"][:] = truth["pixels"][0]
    arrays["snapshots"][:, 2:] = (255 * truth["pixels"][0]).astype(np.uint8)
    path = tmp_path / "grid.png"
    figure = recovery_grid(rows, arrays, truth, SNAPSHOTS, path)
    assert len(figure.axes) > 60
    assert figure.get_figwidth() <= PAGE_INCHES[0]
    assert figure.get_figheight() <= PAGE_INCHES[1]
    assert path.stat().st_size < most


def test_a_grid_of_noise_is_stored_with_fewer_levels_near_its_colours(tmp_path):
    images = [7, 3]
    rows = make_rows(images, attacks=("dlg", "idlg"), statuses=("iteration-limit",))
    truth = make_truth(images, (32, 32, 3))
    arrays, path = make_arrays(rows, truth), tmp_path / "grid.png"
    figure = recovery_grid(rows, arrays, truth, SNAPSHOTS, path)
    assert path.stat().st_size < 300_000
    cell = cell_of(path, figure, "true")
    times = len(cell) // 32
    assert np.abs(cell[::times, ::times] - 255 * truth["pixels"][0]).max() <= 255 / 15 / 2 + 1
    assert tuple(pixels_of(path)[0, 0]) == (255, 255, 255)


# --- convergence ----------------------------------------------------------------------------------------


def test_hold_last_fills_gaps_and_ends_but_not_the_beginning():
    nan, inf = np.nan, np.inf
    held = hold_last(np.array([[1, nan, 3, nan], [nan, 2, inf, nan], [nan] * 4]))
    np.testing.assert_array_equal(held, [[1, 1, 3, 3], [nan, 2, 2, 2], [nan] * 4])


def test_quantiles_hold_ended_trials():
    traces = np.array([[8.0, 1.0, np.nan], [8.0, 4.0, 2.0], [8.0, 6.0, 3.0]])
    np.testing.assert_allclose(trace_quantiles(traces, [0, 0.5, 1]), [[8, 1, 1], [8, 4, 2], [8, 6, 3]])
    assert np.isnan(trace_quantiles(np.full((0, 3), np.nan))).all()


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def test_curves_are_the_quantiles_of_the_solved_and_the_failed_singly():
    rows, truth = make_rows(seeds=12), make_truth([7, 3])
    arrays = make_arrays(rows, truth)
    solved = np.array([row["success"] for row in rows])
    figure = convergence(rows[::-1], arrays, threshold=1e-4)  # rows and arrays are matched by trial
    for axes, name in zip(figure.axes, ("objective_trace", "mse_trace"), strict=True):
        expected = trace_quantiles(arrays[name][solved])
        (median,) = lines(axes, "median")
        np.testing.assert_allclose(np.asarray(median.get_ydata()), expected[1], rtol=1e-12)
        (band,) = axes.collections
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.min() == pytest.approx(expected[0].min())
        assert edges[np.isfinite(edges)].max() == pytest.approx(expected[2].max())
        failed = lines(axes, "failed")
        assert len(failed) == (~solved).sum() == 8
        np.testing.assert_allclose(np.asarray(failed[0].get_ydata()), arrays[name][~solved][0])
        assert axes.get_yscale() == "log"
        assert {to_hex(line.get_color()) for line in failed} == {FAILED.lower()}
    objective, mse = figure.axes
    assert [list(line.get_ydata()) for line in lines(objective, "threshold")] == [[1e-4, 1e-4]]
    assert not lines(mse, "threshold")
    assert "dlg: 16 of 24 solved" in texts(figure)


def test_convergence_with_no_success_one_trial_zeros_and_infinities():
    rows, truth = [make_row(0, 7, "non-finite")], make_truth([7])
    arrays = make_arrays(rows, truth)
    arrays["objective_trace"][0, 3:] = np.inf
    arrays["mse_trace"][0, 1:] = 0.0
    figure = convergence(rows, arrays)
    assert "dlg: 0 of 1 solved" in texts(figure)
    assert not lines(figure.axes[0], "median")
    assert not any("solved:" in text.get_text() for text in figure.legends[0].get_texts())
    drawn = np.asarray(lines(figure.axes[1], "failed")[0].get_ydata())
    assert (drawn > 0).all()
    arrays["objective_trace"][:], arrays["mse_trace"][:] = np.nan, np.nan
    convergence(rows, arrays)


def test_a_diverging_trial_does_not_flatten_the_others():
    rows, truth = make_rows(statuses=("converged", "diverged")), make_truth([7, 3])
    arrays = make_arrays(rows, truth)
    arrays["objective_trace"][1, 5:] = 1e30
    figure = convergence(rows, arrays)
    low, high = figure.axes[0].get_ylim()
    assert 10 < high < 100
    assert low < 1e-5
    assert any("failed beyond the top" in text.get_text() for text in figure.axes[0].texts)


def test_convergence_limits_the_failed_lines_and_shows_the_last():
    rows, truth = make_rows(images=(7,), seeds=100, statuses=("stalled",)), make_truth([7])
    arrays = make_arrays(rows, truth)
    drawn = lines(convergence(rows, arrays).axes[0], "failed")
    assert len(drawn) == FAILED_LINES
    np.testing.assert_allclose(np.asarray(drawn[-1].get_ydata()), arrays["objective_trace"][-1, :13])


@pytest.mark.parametrize("attacks", [1, 2, 4])
def test_convergence_has_a_pair_of_panels_for_each_attack(tmp_path, attacks):
    rows = make_rows(attacks=[f"attack{i}" for i in range(attacks)])
    figure = convergence(rows, make_arrays(rows, make_truth([7, 3])), tmp_path / "c.png")
    assert [axes.get_visible() for axes in figure.axes].count(True) == 2 * attacks
    assert {f"attack{i}: 8 of 12 solved" for i in range(attacks)} <= set(texts(figure))
    assert figure.get_figwidth() in (COLUMN_INCHES, PAGE_INCHES[0])


# --- rates ----------------------------------------------------------------------------------------------


def test_dots_bars_and_band_are_the_rates_and_wilson_intervals():
    rows = make_rows(images=(9, 5, 3), seeds=9)
    figure = success_by_image(summary_of(rows))
    (axes,) = figure.axes
    container = axes.containers[0]
    points, _, bars = container.lines
    np.testing.assert_allclose(points.get_ydata(), [6 / 9] * 3)
    np.testing.assert_allclose([s[:, 1] for s in bars[0].get_segments()], [wilson(6, 9)] * 3)
    point, _, bars = axes.containers[1].lines
    assert list(point.get_xydata()[0]) == [3, pytest.approx(18 / 27)]
    low, high = wilson(18, 27)
    np.testing.assert_allclose(bars[0].get_segments()[0][:, 1], (low, high))
    assert f"dlg, all: 0.67 [{low:.2f}, {high:.2f}]" in texts(figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "5", "9", "all"]


@pytest.mark.parametrize("draw", [success_by_image, mse_shares])
@pytest.mark.parametrize(
    "attacks", [("dlg", "idlg", "dlg:torch-lbfgs"), ("ig", "ig+normal+l2+tv=0.001:" + 9 * "word-")]
)
@pytest.mark.parametrize("panels", [1, 3])
def test_legends_lie_within_their_figure(draw, attacks, panels):
    rows = make_rows(attacks=attacks)
    rows += [{**row, "model": f"model{i}"} for i in range(1, panels) for row in rows]
    figure = draw(summary_of(rows))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        if axes.get_legend():
            box = axes.get_legend().get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("count", [1, 2, 30])
def test_success_by_image_from_one_to_thirty_images(tmp_path, count):
    rows = make_rows(images=range(10000, 10000 + count), seeds=4, attacks=("dlg", "idlg"))
    path = tmp_path / "success.png"
    figure = success_by_image(summary_of(rows), path)
    (axes,) = figure.axes
    assert len(axes.get_xticklabels()) == count + 1
    assert figure.get_figwidth() == (COLUMN_INCHES if count <= 10 else PAGE_INCHES[0])
    assert path.stat().st_size < 300_000
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_an_image_that_one_attack_has_not_reached_keeps_its_place():
    rows = [make_row(0, 3, "converged"), make_row(1, 5, "stalled"), make_row(2, 5, "converged", attack="idlg")]
    (axes,) = success_by_image(summary_of(rows)).axes
    dlg, idlg = (container.lines[0].get_xdata() for container in axes.containers[::2])
    assert [round(x) for x in dlg] == [0, 1]
    assert [round(x) for x in idlg] == [1]


def test_models_and_data_sets_get_panels_and_dollars_are_no_formula(tmp_path):
    rows = [
        make_row(0, 3, "converged"),
        make_row(1, 3, "stalled", model="resnet18"),
        make_row(2, 3, "stalled", dataset="/data/a$b$c.npz"),
    ]
    summary, arrays = summary_of(rows), make_arrays(rows, make_truth([3]))
    for figure in (success_by_image(summary), mse_shares(summary)):
        shown = {axes.get_title("left") for axes in figure.axes if axes.get_visible()}
        assert shown == {"lenet, cifar100", "resnet18, cifar100", r"lenet, a\$b\$c.npz"}
        figure.savefig(tmp_path / "x.png")
    words = texts(convergence(rows, arrays))
    assert {"dlg, lenet, cifar100: 1 of 1 solved", "dlg, resnet18, cifar100: 0 of 1 solved"} <= set(words)
    words = texts(recovery_grid(rows, arrays, make_truth([3]), SNAPSHOTS))
    assert "dlg, resnet18, cifar100, image 3" in words


def test_a_partial_run_says_so():
    summary = summary_of(make_rows(), expected=40)
    for figure in (success_by_image(summary), mse_shares(summary)):
        assert "lenet, cifar100 (partial: 12 of 40 trials)" in texts(figure)


def test_mse_shares_are_those_of_the_summary_with_intervals():
    rows = make_rows(seeds=10)
    for row, mse in zip(rows, np.geomspace(2e-5, 0.05, len(rows)), strict=True):
        row["mse"] = float(mse)
    rows[-1]["mse"] = float("nan")
    summary = summary_of(rows)
    figure = mse_shares(summary)
    (axes,) = figure.axes
    line, _, bars = axes.containers[0].lines
    shares = list(summary["groups"][-1]["mse_below"].values())
    np.testing.assert_allclose(line.get_ydata(), shares)
    expected = [wilson(round(share * 20), 20) for share in shares]
    np.testing.assert_allclose([s[:, 1] for s in bars[0].get_segments()], expected)
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["0.01", "0.005", "0.001", "0.0005", "0.0001"]
    assert "dlg (n = 20)" in texts(figure)


@pytest.mark.parametrize("draw", [success_by_image, mse_shares])
def test_a_summary_without_groups_is_refused(draw):
    with pytest.raises(InputError, match="no trial has finished"):
        draw(summary_of([], expected=3))


# --- a whole run ----------------------------------------------------------------------------------------

FILES = ["recovery.png", "convergence.png", "success_by_image.png", "mse_shares.png"]


def make_run(path, rows, *, images=(7, 3), snapshots=SNAPSHOTS, parts=2, seeds=6, extra=None):
    settings = {
        "victim": {"images": list(images)},
        "attacks": [{"name": name} for name in dict.fromkeys(row["attack"] for row in rows)],
        "seeds": seeds,
        "snapshots": snapshots,
        "criteria": {"objective": 1e-3, "mse_thresholds": [0.01, 0.001]},
    } | (extra or {})
    truth = make_truth(images)
    arrays = make_arrays(rows, truth, snapshots or [])
    if not snapshots:
        del arrays["snapshots"]
    with Run.create_or_resume(path, settings, {}) as run:
        run.write_truth(**truth)
        for part in np.array_split(np.arange(len(rows)), parts):
            run.append(
                [{**rows[i], "settings_hash": run.settings_hash} for i in part],
                {name: array[part] for name, array in arrays.items()},
            )
    return Run.open(path)


@pytest.mark.parametrize(
    "case", ["whole", "partial", "one trial", "no success", "non-finite", "two attacks", "no snapshots"]
)
def test_draw_all_draws_every_figure(tmp_path, case):
    options = {"snapshots": None} if case == "no snapshots" else {"snapshots": SNAPSHOTS}
    rows = {
        "partial": make_rows(seeds=2),
        "one trial": make_rows(images=(7,), seeds=1),
        "no success": make_rows(statuses=("stalled", "diverged")),
        "non-finite": make_rows(statuses=("non-finite",)),
        "two attacks": make_rows(attacks=("dlg", "idlg")),
    }.get(case, make_rows())
    run = make_run(tmp_path / "run", rows, **options)
    files = draw_all(run)
    assert files == [tmp_path / "run" / "figures" / name for name in FILES]
    for file in files:
        assert 2_000 < file.stat().st_size < 300_000
        assert pixels_of(file).std() > 5
        assert Image.open(file).info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)


def test_draw_all_loads_only_the_candidates_it_shows(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", make_rows())
    asked, load = [], run.arrays
    monkeypatch.setattr(
        run, "arrays", lambda keys, trials=None: asked.append((set(keys), trials)) or load(keys, trials)
    )
    draw_all(run, tmp_path / "deep" / "folder", images=[3])
    assert [keys for keys, _ in asked] == [
        {"trial", "candidate", "snapshots"},
        {"trial", "objective_trace", "mse_trace"},
    ]
    assert len(asked[0][1]) == 3
    assert asked[1][1] is None
    assert sorted(file.name for file in (tmp_path / "deep" / "folder").iterdir()) == sorted(FILES)


def test_draw_all_uses_the_runs_own_criteria_and_says_partial(tmp_path, monkeypatch):
    drawn = {}
    for name in ("convergence", "mse_shares"):
        draw = getattr(whole_run, name)
        monkeypatch.setattr(whole_run, name, lambda *a, name=name, draw=draw, **k: drawn.update({name: draw(*a, **k)}))
    draw_all(make_run(tmp_path / "run", make_rows(seeds=2)))
    assert [list(line.get_ydata()) for line in lines(drawn["convergence"].axes[0], "threshold")] == [[1e-3, 1e-3]]
    assert "lenet, cifar100 (partial: 4 of 12 trials)" in texts(drawn["mse_shares"])


def test_draw_all_works_where_the_settings_say_little(tmp_path):
    rows = make_rows()
    run = make_run(tmp_path / "run", rows, extra={"victim": {}, "criteria": {}, "attacks": None})
    assert len(draw_all(run)) == 4


def test_a_run_without_rows_and_a_path_that_is_a_file_are_one_line_errors(tmp_path):
    empty = Run.create_or_resume(tmp_path / "empty", {}, {})
    with empty, pytest.raises(InputError, match="no finished trial yet"):
        draw_all(empty)
    run = make_run(tmp_path / "run", make_rows())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"`path` .*file cannot be written"):
        draw_all(run, tmp_path / "file")
    with pytest.raises(InputError, match=r"`path` .* cannot be written"):
        mse_shares(summary_of(make_rows()), tmp_path / "absent" / "x.png")


def test_drawing_leaves_matplotlib_alone():
    code = """
import sys, jaxleak.results.figures
assert "matplotlib" not in sys.modules
import matplotlib
before = dict(matplotlib.rcParams)
from jaxleak.results.verdict import Criteria
from jaxleak.results.summary import summarise
row = dict(attack="a", model="m", dataset="d", image=1, trial=0, success=True, status="converged", objective=0.0,
           mse=0.0, psnr=99.0, threshold_iterations=1, threshold_evaluations=1, label_correct=True)
jaxleak.results.figures.mse_shares(summarise([row], Criteria()))
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:jaxleak", "-c", code], check=True, timeout=60)
