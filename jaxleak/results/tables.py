"""Tables of one or several runs, for a terminal (rich)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxleak.results.verdict import STATUSES

if TYPE_CHECKING:
    from rich.table import Table

Summary = dict[str, Any]
Group = dict[str, Any]

NOTHING = "–"  # a number that does not exist, as the iterations of no success

# Heading and text of each column after those that name the group.
COLUMNS: dict[str, Callable[[Group], str]] = {
    "solved": lambda group: _judged(group, _solved),
    "rate [95 %]": lambda group: _judged(group, rate_text),
    "iterations\nmean,\nmedian": lambda group: _pair(group["iterations_mean"], group["iterations_median"]),
    "eval.\nmedian": lambda group: _number(group["evaluations_median"]),
    "label\nright": lambda group: f"{group['label_accuracy']:.2f}" if group.get("labels_known", True) else NOTHING,
    "selected,\noracle": lambda group: _judged(group, _restarts),
}
NOTE = """iterations, eval. (evaluations): those to the objective threshold, over solved trials
selected: share of images whose restart with the lowest objective solved
oracle: share of images whose restart with the lowest MSE solved"""
# Statuses whose names alone do not say what happened.
MEANINGS = {
    "wrong-image": "the objective is small, but the image is wrong",
    "matched": "the objective is small, and no true image is known",
    "stalled": "no later step of the solver would move",
    "lost": "the trial's workers failed too often to finish it",
}


def rate_text(group: Group) -> str:
    """A rate with its 95 % interval: `0.68 [0.65, 0.71]`."""
    low, high = group["ci95"]
    return f"{group['success_rate']:.2f} [{low:.2f}, {high:.2f}]"


def partial_text(summary: Summary) -> str:
    """`partial: n of m trials`, or nothing for a complete run."""
    if summary["complete"]:
        return ""
    done = sum(group["trials"] for group in _overall(summary))
    missing = (summary.get("shards") or {}).get("missing", [])
    listed = ", ".join(f"{shard['shard']} ({shard['done']} of {shard['trials']} trials)" for shard in missing)
    return f"partial: {done} of {summary['trials_expected']} trials" + (f"; shards missing: {listed}" if listed else "")


def _judged(group: Group, text: Callable[[Group], str]) -> str:
    """`text` of a group, where there are private images to compare with."""
    return text(group) if group.get("truth_known", True) else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.1f}" if value < 1000 and value % 1 else f"{value:,.0f}"


def _pair(*values: float | None) -> str:
    return NOTHING if None in values else ", ".join(map(_number, values))


def _restarts(group: Group) -> str:
    """The selected and the oracle restart: yes or no for one image, the share of solved images for all."""
    return ", ".join(_restart(group[choice]) for choice in ("selected", "oracle"))


def _restart(choice: dict[str, Any] | None) -> str:
    if choice is None:
        return NOTHING
    if "success_rate" in choice:
        return f"{choice['success_rate']:.2f}"
    return "yes" if choice["success"] else "no"


def _image(group: Group) -> str:
    return "all" if group["image"] is None else str(group["image"])


def _overall(summary: Summary) -> list[Group]:
    return [group for group in summary["groups"] if group["image"] is None]


def _name_columns(summaries: Sequence[Summary], names: Sequence[str] | None) -> dict[str, Callable[..., str]]:
    """The columns that name a group: run, model and data set are left out where all are the same."""
    groups = [group for summary in summaries for group in summary["groups"]]
    columns: dict[str, Callable[..., str]] = {}
    if len(summaries) > 1:
        labels = list(names or map(str, range(1, 1 + len(summaries))))
        columns["run"] = lambda number, _group: labels[number]
    columns["attack"] = lambda _number, group: group["attack"]
    for heading, field in (("model", "model"), ("data set", "dataset")):
        if len({group[field] for group in groups}) > 1:
            columns[heading] = lambda _number, group, field=field: _short(group[field])
    return columns


def _short(name: str) -> str:
    """The last part of a path; another name as it is."""
    return Path(name).name or name


def _table(title: str, summaries: Sequence[Summary], names: Sequence[str] | None, note: str = "") -> "Table":
    """An empty table whose title says what all groups share and whose caption says which runs are partial."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    groups = [group for summary in summaries for group in summary["groups"]]
    shared = [values.pop() for field in ("model", "dataset") if len(values := {_short(g[field]) for g in groups}) == 1]
    partial = [_partial_line(i, summary, summaries, names) for i, summary in enumerate(summaries)]
    caption = "\n".join(filter(None, [*partial, note]))
    return Table(
        title=Text(": ".join(filter(None, (title, ", ".join(shared)))), style="bold"),
        caption=Text(caption) if caption else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        min_width=36,
    )


def _partial_line(number: int, summary: Summary, summaries: Sequence[Summary], names: Sequence[str] | None) -> str:
    partial = partial_text(summary)
    if not partial or len(summaries) == 1:
        return partial
    return f"run {names[number] if names else number + 1}: {partial}"


def _fill(table: "Table", names: Sequence[str], numbers: Sequence[str], lines: Sequence[Sequence[str]]) -> "Table":
    """Add columns and lines. On a narrow terminal names are folded; numbers never."""
    from rich.text import Text

    for heading in names:
        table.add_column(heading, overflow="fold", min_width=5)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))  # Text: a name may hold what rich takes for markup
    return table


def summary_table(
    summaries: Sequence[Summary], names: Sequence[str] | None = None, *, by_image: bool = False
) -> "Table":
    """Rates of one or several runs, one line for each attack, model and data set.

    Args:
        summaries: as `summary.summarise` makes them.
        names: of the runs, shown when there are several; numbers from 1, if not given.
        by_image: also one line for each image, above that over all images.
    """
    columns = _name_columns(summaries, names)
    numbers = {"image": _image, **COLUMNS} if by_image else COLUMNS
    lines = [
        [
            *(text(number, group) for text in columns.values()),
            *(text(group) for text in numbers.values()),
        ]
        for number, summary in enumerate(summaries)
        for group in (summary["groups"] if by_image else _overall(summary))
    ]
    title = "Success by image" if by_image else "Success over all images"
    return _fill(_table(title, summaries, names, NOTE), list(columns), list(numbers), lines)


def status_table(summaries: Sequence[Summary], names: Sequence[str] | None = None) -> "Table":
    """Number of trials with each status, for one or several runs; see `summary_table`."""
    columns = _name_columns(summaries, names)
    groups = [group for summary in summaries for group in _overall(summary)]
    there = {status for group in groups for status, count in group["status"].items() if count}
    shown = [status for status in STATUSES if status not in ("matched", "lost") or status in there]
    lines = [
        [
            *(text(number, group) for text in columns.values()),
            *(str(group["status"].get(status, 0)) for status in shown),
            str(group["trials"]),
        ]
        for number, summary in enumerate(summaries)
        for group in _overall(summary)
    ]
    headings = [status.replace("-", "-\n") for status in shown]
    note = "\n".join(f"{status}: {MEANINGS[status]}" for status in shown if status in MEANINGS)
    return _fill(_table("How trials ended", summaries, names, note), list(columns), [*headings, "trials"], lines)


def evidence_table(reports: Sequence[dict[str, Any]]) -> "Table":
    """One line for each attack on an update, from `attacks` of an audit's report."""
    from rich import box
    from rich.table import Table

    table = Table(title="What the update gives away", title_justify="left", box=box.SIMPLE_HEAD)
    rows = [
        [
            report["attack"],
            NOTHING if report["labels"] is None else " ".join(map(_label, report["labels"])),
            f"{report['explain']}/{report['restarts']}",
            f"{report['agree']}/{report['restarts']}",
            NOTHING if report["left"] is None else f"{report['left']:.1e}",
            *([] if report["psnr"] is None else [f"{report['psnr']:.1f}"]),
        ]
        for report in reports
    ]
    judged = ["PSNR\n[dB]"] if any(report["psnr"] is not None for report in reports) else []
    numbers = ["explain\nthe update", "agree with\nthe best", "left of it\n(squared)", *judged]
    return _fill(
        table, ["attack", "labels"], numbers, [row + [NOTHING] * (2 + len(numbers) - len(row)) for row in rows]
    )


def risk_table(lines: Sequence[dict[str, Any]]) -> "Table":
    """One line for each defence, from `defences` of `risk.json`."""
    from rich import box
    from rich.table import Table

    table = Table(title="What the best attack can expect", title_justify="left", box=box.SIMPLE_HEAD)
    rows = [
        [
            *(line["defence"], f"{line['psnr']:.1f}", f"{line['filled']:.1f}", f"{line['error']:.2g}"),
            "yes" if line["hidden"] else "no",
        ]
        for line in lines
    ]
    heads = ["PSNR\n[dB]", "knowing\npictures", "error\nper pixel", "hidden\n(20 dB)"]
    return _fill(table, ["defence"], heads, rows)


def rates_by_image(summary: Summary) -> "Table":
    """Success rate of each image, a line each, with a column for each attack, model and data set."""
    names = _name_columns([summary], None)
    keys = {_key(group): ", ".join(text(0, group) for text in names.values()) for group in _overall(summary)}
    brief = len(keys) > 3  # rates only, to fit 100 columns
    rates = {
        (group["image"], *_key(group)): rate_text(group) if brief else f"{_solved(group)}  {rate_text(group)}"
        for group in summary["groups"]
    }
    images = sorted({group["image"] for group in summary["groups"] if group["image"] is not None})
    lines = [
        ["all" if image is None else str(image), *(rates.get((image, *key), NOTHING) for key in keys)]
        for image in ([*images, None] if keys else [])
    ]
    headings = [f"{_markup_free(name)}\n{'' if brief else 'solved  '}rate [95 %]" for name in keys.values()]
    return _fill(_table("Success by image", [summary], None), ["image"], headings, lines)


def _markup_free(name: str) -> str:
    from rich.markup import escape

    return escape(name)


def _key(group: Group) -> tuple[str, str, str]:
    return group["attack"], group["model"], group["dataset"]


def _solved(group: Group) -> str:
    return f"{group['successes']}/{group['trials']}"


def _label(label: Any) -> str:
    """A label, or the numbers of a target that is no class."""
    return ",".join(f"{number:.2g}" for number in label) if isinstance(label, list) else str(label)
