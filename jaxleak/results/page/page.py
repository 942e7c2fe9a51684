"""One self-contained HTML file: no request to anywhere, which its content security policy forbids too."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxleak.data.paths import check_inside, is_local, reachable, write_atomically, writing
from jaxleak.errors import InputError, check_not_negative
from jaxleak.results.page import sections
from jaxleak.results.page.choose import choose
from jaxleak.results.page.collect import Series, Source, find_series, read_runs
from jaxleak.results.page.payload import payload
from jaxleak.results.page.pictures import likenesses, wrong
from jaxleak.results.page.words import plural, threat_model
from jaxleak.results.store.environment import version_of

# In the order in which they run; `plotly` is a library, the others stand beside this file.
SCRIPTS = ("state.js", "viewer.js", "curves.js", "page.js")


def write_page(
    runs: Sequence[str | Path], out: str | Path | None = None, *, trials: int = 2, title: str | None = None
) -> Path:
    """Write one HTML file about the runs: what was attacked, side by side, curves, tables, settings, rows as CSV.

    Args:
        runs: run directories; they may be unfinished.
        out: the file; None is `report.html` in the first run directory.
        trials: how many trials of each attack and image have pictures, beside best, median, worst and examples of
            each way to fail.
        title: of the page.

    Returns:
        The file.

    Raises:
        InputError: a directory that is no run, or a file that cannot be written.
        StorageError: the disk is full.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("mlp", jaxleak.load_dataset("photos"), images=[6])
        >>> _ = jaxleak.attack(victim, "analytic", seeds=1, quiet=True, out="my-run")
        >>> jaxleak.write_page(["my-run"], "page.html", title="One photograph").name
        'page.html'
    """
    check_not_negative("trials", trials, integer=True)
    target = _target(runs, out)
    sources = read_runs(runs)
    html = page(sources, trials, title)
    with writing("out", target):
        write_atomically(target, html.encode(errors="replace"))  # a file's name may be no text
    return target


def _target(runs: Sequence[str | Path], out: str | Path | None) -> Path:
    """The file to write, checked before long work."""
    if not runs:
        raise InputError("`runs` must name at least one run directory.")
    target = reachable(runs[0]) / "report.html" if out is None else reachable(out)
    if out is None:
        check_inside(target.parent, target.name)
    if target.is_dir():
        raise InputError(f"`out` must be a file; {target} is a directory. Add a name, as in {target / 'report.html'}.")
    if out is not None and is_local(target) and not target.parent.is_dir():
        raise InputError(f"`out` {target}: there is no directory {target.parent}. Make it first.")
    return target


def page(sources: Sequence[Source], trials: int, title: str | None = None) -> str:
    """The HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    series, facets = find_series(sources)
    shown = choose(sources, series, trials)
    data = payload(sources, series, facets, shown)
    tables = [
        sections.by_image(sources, series, shown),
        sections.failures(sources, series, shown),
        sections.labels(sources, series),
        sections.slots(sources, series, shown),
    ]
    code = "\n".join(_resource(name) for name in SCRIPTS)
    scripts = [get_plotlyjs().replace("\r", ""), f'"use strict";\n{{\n{code}\n}}\n']
    environment = Environment(
        loader=PackageLoader("jaxleak.results.page", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title or _title(sources, series),
        rates=sections.rates(sources, series, facets),
        text=all(source.run.modality == "text" for source in sources),
        wrong=wrong(sources),
        likenesses=likenesses(sources),
        tables=[table for table in tables if table.rows],
        models=_models(sources),
        sources=[_described(source) for source in sources],
        warnings=_warnings(sources),
        left_out=shown.left_out,
        trials=sum(len(source.rows) for source in sources),
        data=Markup(embedded(data)),
        style=Markup(_resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy="; ".join(
            [
                *("default-src 'none'", "img-src data: blob:", "style-src 'unsafe-inline'"),
                f"script-src {' '.join(map(_hash, scripts))}",
                *("base-uri 'none'", "form-action 'none'"),
            ]
        ),
        version=version_of("jaxleak"),
        written=datetime.now(UTC).isoformat(timespec="minutes"),
    )


def embedded(data: Any) -> str:
    """JSON for a script element, escaped so that it cannot end or open markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII only: U+2028 and U+2029 are escaped
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(script: str) -> str:
    """A script's hash, as the content security policy names it."""
    if "</script" in script.lower():
        raise ValueError("a script may not hold its own end")
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (files("jaxleak.results.page") / name).read_text(encoding="utf-8").replace("\r", "")


def _title(sources: Sequence[Source], series: Sequence[Series]) -> str:
    attacks = list(dict.fromkeys(one_series.attack for one_series in series)) or ["no trial yet"]
    listed = ", ".join(attacks[:4]) + (", …" if len(attacks) > 4 else "")
    models = sorted({source.run.settings["victim"]["model"] for source in sources})
    return f"{listed} on {', '.join(models[:3])}: {plural(len(sources), 'run')}"


def _models(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The threat models, each once with the runs that have it."""
    runs: dict[tuple, list[str]] = {}
    for source in sources:
        runs.setdefault(tuple(threat_model(source.threat)), []).append(source.name)
    return [{"sentences": sentences, "runs": names} for sentences, names in runs.items()]


def _warnings(sources: Sequence[Source]) -> list[str]:
    """The warnings, each once, with the names of its runs where there are several."""
    runs: dict[str, list[str]] = {}
    for source in sources:
        for text in source.warnings:
            runs.setdefault(text, []).append(source.name)
    if len(sources) == 1:
        return list(runs)
    return [f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}: {text}" for text, names in runs.items()]


def _described(source: Source) -> dict[str, Any]:
    """The facts needed to repeat a run."""
    run, engine = source.run, source.summary["engine"]
    environment = {key: value for key, value in run.environment.items() if key not in ("versions", "command")}
    versions = run.environment.get("versions") or {}
    facts = {
        "directory": run.path.name,
        "command": run.environment.get("command") or "not recorded",
        "settings hash": run.settings_hash,
        "made": run.created,
        "trials": f"{len(source.rows)} of {source.summary['trials_expected']}",
        "evaluations per second": sections.number(engine["evaluations_per_second"]).text,
        "seconds computing": sections.number(engine["seconds"]).text,
        **{key.replace("_", " "): str(value) for key, value in environment.items()},
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
    return {"name": source.name, "facts": facts, "settings": json.dumps(run.settings, indent=1)}
