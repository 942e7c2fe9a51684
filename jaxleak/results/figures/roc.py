"""ROC curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxleak.results.figures.style import ATTACK_COLOURS, COLUMN_INCHES, make_panels, save_figure, style_context
from jaxleak.results.roc import auc, delong, roc

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roc_curves(
    scores: Mapping[str, np.ndarray], members: np.ndarray, title: str, path: str | Path | None = None
) -> "Figure":
    """ROC curves of several scores of the same updates, with areas and their intervals.

    Args:
        scores: by name, [n] each.
        members: whether each update has what is asked for [n].
        title: above the panel.
        path: where the PNG goes.
    """
    with style_context():
        figure, ((panel,),) = make_panels(1, COLUMN_INCHES, COLUMN_INCHES)
        panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for (name, values), colour in zip(scores.items(), ATTACK_COLOURS, strict=False):
            low, high = delong(values, members)
            label = f"{name}: {auc(values, members):.2f} [{low:.2f}, {high:.2f}]"
            panel.plot(*roc(values, members), color=colour, linewidth=1.2, label=label, clip_on=False)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="false positive rate", ylabel="true positive rate", title=title)
        panel.set_aspect("equal")
        panel.legend(loc="lower right", title=f"area [95 %], n = {len(members)}", title_fontsize=6.5)
        return save_figure(figure, path)
