"""Tables: every number in its place, nothing cut off at 100 columns, partial runs marked."""

import io
import math
import statistics

import pytest
from rich.console import Console

from jaxleak.results.summary import summarise
from jaxleak.results.tables import partial_text, rate_text, rates_by_image, status_table, summary_table
from jaxleak.results.verdict import STATUSES, Criteria


def make_row(trial, image, status="converged", *, attack="dlg", model="lenet", dataset="cifar100", **changes):
    solved = status == "converged"
    return {
        "attack": attack,
        "model": model,
        "dataset": dataset,
        "image": image,
        "trial": trial,
        "status": status,
        "success": solved,
        "objective": 1e-6 if solved else 1.0,
        "mse": 1e-5 if solved else 0.5,
        "psnr": 50.0 if solved else 3.0,
        "threshold_iterations": 80 + trial % 3 if solved else None,
        "threshold_evaluations": 1500 if solved else None,
        "label_correct": solved,
    } | changes


def make_rows(images=(7, 3), seeds=50, attacks=("dlg",), every=3):
    """Of each three trials of an image two solve."""
    trials = [(attack, image, seed) for attack in attacks for image in images for seed in range(seeds)]
    return [
        make_row(trial, image, "stalled" if seed % every == every - 1 else "converged", attack=attack)
        for trial, (attack, image, seed) in enumerate(trials)
    ]


SOLVED_ITERATIONS = [row["threshold_iterations"] for row in make_rows() if row["success"]]
ITERATIONS_TEXT = f"{statistics.mean(SOLVED_ITERATIONS):.1f}, {statistics.median(SOLVED_ITERATIONS):.1f}"


def make_summary(rows=None, **options):
    return summarise(make_rows() if rows is None else rows, Criteria(), **options)


def shown(table, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def line_of(text, word):
    """The cells of the line that starts with a word."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [word]]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_rate_reads_as_rate_and_interval():
    assert rate_text({"success_rate": 0.68, "ci95": [0.6504, 0.7082]}) == "0.68 [0.65, 0.71]"


@pytest.mark.parametrize("width", [80, 100])
def test_summary_line_holds_every_number(width):
    text = shown(summary_table([make_summary()]), width)
    expected = ["dlg", "68/100", "0.68 [0.58, 0.76]", ITERATIONS_TEXT, "1,500", "0.68", "1.00, 1.00"]
    assert line_of(text, "dlg") == expected
    assert "Success over all images: lenet, cifar100" in text
    assert all(word in text for word in ("eval. (evaluations)", "selected: share", "oracle: share"))
    assert "partial" not in text


def test_a_thousand_trials_of_every_size_fit_80_columns():
    rows = [make_row(i, 7, threshold_iterations=1100, threshold_evaluations=123456) for i in range(1000)]
    cells = line_of(shown(summary_table([make_summary(rows)]), 80), "dlg")
    assert cells[1:5] == ["1000/1000", "1.00 [1.00, 1.00]", "1,100, 1,100", "123,456"]
    assert cells[5:] == ["1.00", "1.00, 1.00"]


def test_summary_by_image_says_whether_the_selected_and_the_oracle_solved():
    rows = [
        make_row(0, 7, mse=0.4),
        make_row(1, 7, "wrong-image", objective=1e-9, mse=0.3),
        make_row(2, 3, "non-finite", objective=float("nan"), mse=float("nan")),
        make_row(3, 5),
    ]
    text = shown(summary_table([make_summary(rows)], by_image=True))
    ends = [line.split("  ")[-2:] for line in text.splitlines() if line.startswith(" dlg")]
    assert [" ".join(end).split()[-2:] for end in ends] == [
        ["–,", "–"],
        ["yes,", "yes"],
        ["no,", "no"],
        ["0.33,", "0.33"],
    ]
    assert [line.split()[1] for line in text.splitlines() if line.startswith(" dlg")] == ["3", "5", "7", "all"]


def test_no_success_leaves_dashes():
    text = shown(summary_table([make_summary([make_row(0, 7, "diverged")])]))
    assert line_of(text, "dlg") == ["dlg", "0/1", "0.00 [0.00, 0.79]", "–", "–", "0.00", "0.00, 0.00"]


def test_several_runs_stand_side_by_side_with_names():
    runs = [make_summary(), make_summary(make_rows(every=2), expected=500)]
    text = shown(summary_table(runs, ["out/a", "out/b"]))
    assert line_of(text, "out/a")[:4] == ["out/a", "dlg", "68/100", "0.68 [0.58, 0.76]"]
    assert line_of(text, "out/b")[:4] == ["out/b", "dlg", "50/100", "0.50 [0.40, 0.60]"]
    assert "run out/b: partial: 100 of 500 trials" in text
    assert "run out/a" not in text
    assert line_of(shown(summary_table(runs)), "2")[:2] == ["2", "dlg"]


def test_models_and_data_sets_get_columns_only_where_they_differ():
    rows = [make_row(0, 7), make_row(1, 7, model="resnet18"), make_row(2, 7, dataset="/home/me/[red]pictures")]
    text = shown(summary_table([make_summary(rows)]))
    assert "[red]pictures" in text
    assert "/home" not in text
    assert "resnet18" in text
    assert "data set" in text
    assert "Success over all images\n" in text.replace(" \n", "\n").replace("  ", "")
    only = shown(summary_table([make_summary([make_row(0, 7)])]))
    assert "data set" not in only


def test_a_dollar_or_bracket_in_a_single_data_set_is_shown_as_it_is():
    summary = make_summary([make_row(0, 7, dataset="[bold]x", attack="[i]a")])
    for table in (summary_table([summary]), status_table([summary]), rates_by_image(summary)):
        assert "lenet, [bold]x" in shown(table)
        assert "[i]a" in shown(table)


def test_status_table_counts_every_status():
    rows = [make_row(i, 7, status) for i, status in enumerate([*STATUSES, "stalled", "stalled"])]
    text = shown(status_table([make_summary(rows, expected=11)]), 100)
    assert line_of(text, "dlg") == ["dlg", "1", "1", "1", "1", "3", "1", "1", "1", "10"]
    heads = " ".join(text.split())
    assert all(part in heads for status in STATUSES for part in status.split("-"))
    assert "partial: 10 of 11 trials" in text
    for meaning in (
        "stalled: no later step",
        "wrong-image: the objective",
        "lost: the trial's",
        "matched: the objective",
    ):
        assert meaning in text
    judged = [row for row in rows if row["status"] != "matched"]
    assert "matched" not in shown(status_table([make_summary(judged)]), 80)


def test_rates_by_image_has_a_line_for_each_image_and_all():
    rows = [*make_rows(), make_row(500, 5, attack="idlg"), make_row(501, 7, "stalled", attack="idlg")]
    text = shown(rates_by_image(make_summary(rows)))
    assert line_of(text, "3") == ["3", "34/50", "0.68 [0.54, 0.79]", "–"]
    assert line_of(text, "5") == ["5", "–", "1/1", "1.00 [0.21, 1.00]"]
    assert line_of(text, "7") == ["7", "34/50", "0.68 [0.54, 0.79]", "0/1", "0.00 [0.00, 0.79]"]
    assert line_of(text, "all")[1:3] == ["68/100", "0.68 [0.58, 0.76]"]


def test_rates_by_image_of_four_attacks_fit_100_columns():
    text = shown(rates_by_image(make_summary(make_rows(attacks=("dlg", "idlg", "cpl", "ig")))))
    assert line_of(text, "7") == ["7", *["0.68 [0.54, 0.79]"] * 4]


def test_a_run_without_trials_is_an_empty_table_that_says_so():
    empty = make_summary([], expected=10)
    assert partial_text(empty) == "partial: 0 of 10 trials"
    for table in (summary_table([empty]), status_table([empty]), rates_by_image(empty)):
        assert "partial: 0 of 10 trials" in shown(table)
    assert shown(summary_table([]))


def test_what_cannot_be_compared_has_no_rate():
    """Without the private images nothing counts as solved, and without their labels none as right."""
    rows = [make_row(i, 0, "matched", mse=math.nan, psnr=math.nan, label=-1, success=False) for i in range(3)]
    (line,) = [line for line in shown(summary_table([summarise(rows, Criteria())])).splitlines() if "dlg" in line]
    assert "0/3" not in line
    assert "0.00" not in line
    known = [row | {"label": 4, "label_correct": True} for row in rows]
    (line,) = [line for line in shown(summary_table([summarise(known, Criteria())])).splitlines() if "dlg" in line]
    assert "1.00" in line
    assert "0/3" not in line
