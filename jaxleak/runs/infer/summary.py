"""The summary of an inference: rates of words, areas under ROC curves, with 95 % intervals; and in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxleak.results.intervals import mean_interval, wilson
from jaxleak.results.roc import auc, delong

PRINTED = 100  # tokens of an update of one's own
BOOTSTRAP, DELONG = "percentile bootstrap over batches", "DeLong"


def summarise(what: str, rows: Sequence[dict[str, Any]], truth: str, scores: Sequence[str]) -> dict[str, Any]:
    """`n` updates, and what came of them.

    Args:
        what: the question.
        rows: of its updates.
        truth: column that says whether the update has what is asked for; "" for words.
        scores: columns of the attacks.
    """
    return {"what": what, "n": len(rows), **(_areas(rows, truth, scores) if scores else _words(rows))}


def _areas(rows: Sequence[dict[str, Any]], truth: str, scores: Sequence[str]) -> dict[str, Any]:
    having = np.asarray([row[truth] for row in rows])
    attacks = {}
    for name in scores:
        values = np.asarray([row[name] for row in rows])
        attacks[name] = {"auc": auc(values, having), "ci95": delong(values, having)}
    return {"having": int(having.sum()), "interval": DELONG, "attacks": attacks}


def _words(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over batches; the precision is of those where something was found."""
    told: dict[str, Any] = {"interval": BOOTSTRAP}
    for name in ("recall", "precision"):
        values = np.asarray([row[name] for row in rows if row[name] is not None])
        told[name] = float(values.mean()) if len(values) else None
        told[f"{name}_ci95"] = mean_interval(values) if len(values) else None
    whole = sum(row["right"] == row["tokens"] == row["found"] for row in rows)
    return {
        **told,
        "silent": sum(row["found"] == 0 for row in rows),
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "found": float(np.mean([row["found"] for row in rows])),
        "whole": whole,
        "whole_ci95": wilson(whole, len(rows)),
    }


def _rate(value: float | None, bounds: Sequence[float] | None) -> str:
    return "–" if value is None or bounds is None else f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def sentences(summary: dict[str, Any]) -> list[str]:
    """The summary in lines."""
    if summary["what"] == "own words":
        tokens = summary.get("words", summary["found_tokens"])
        shown = " ".join(map(str, tokens[:PRINTED])) + (" ..." if len(tokens) > PRINTED else "")
        rule = "have a gradient" if summary["threshold"] == 0 else "stand out from most"
        rows = f"{summary['found']} of {summary['vocabulary']} rows"
        return [f"{rows} {rule} (longer than {summary['threshold']:.3g}): {shown}"]
    if summary["what"] == "words":
        return [
            f"words of {summary['n']} batches of {summary['tokens']:.1f} tokens (mean): {summary['found']:.1f} found",
            f"share of the batch's tokens found (recall): {_rate(summary['recall'], summary['recall_ci95'])}",
            f"share of found ones that are right (precision): {_rate(summary['precision'], summary['precision_ci95'])}",
            f"batches whose tokens are all found, and no other: {summary['whole']}/{summary['n']}",
            f"95 % intervals: {summary['interval']}",
        ]
    asked = summary["settings"].get("property") if "settings" in summary else None
    what = f"property {asked}" if asked else summary["what"]
    lines = [f"{what}: {summary['n']} updates, {summary['having']} of them with it; area under the ROC curve:"]
    for name, one in summary["attacks"].items():
        chance = " (chance is within)" if one["ci95"][0] <= 0.5 <= one["ci95"][1] else ""
        lines.append(f"  {name}: {_rate(one['auc'], one['ci95'])}{chance}")
    return [*lines, f"95 % intervals: {summary['interval']}"]
