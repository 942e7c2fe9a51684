"""The summary of a run as it stands, made anew from its rows: the one that is stored may be older."""

import json
from typing import Any

from jaxleak import cautions
from jaxleak.stats import Criteria, expected_trials, summarise
from jaxleak.store import Run


def current_summary(run: Run) -> dict[str, Any]:
    """What `summary.json` would hold, with `shards` and `warnings`; the run need not be complete."""
    settings, rows = run.settings, run.rows()
    criteria = Criteria(**settings["criteria"])
    try:
        written = json.loads((run.path / "summary.json").read_text())
        engine = written["engine"]
        finished = sum(group["trials"] for group in written["groups"] if group["image"] is None)
    except (OSError, ValueError, KeyError, TypeError):
        written, engine, finished = {}, None, -1
    expected = expected_trials(settings)
    summary = summarise(rows, criteria, expected=expected, engine=engine, settings_hash=run.settings_hash)
    # Those about the settings stand in summary.json only. It may be older than the rows, or than warnings.
    known = written.get("warnings") if finished == len(rows) else None
    found = cautions.after(rows, criteria) if known is None else known
    return {**summary, "shards": run.shards(expected), "warnings": found}
