"""The DLG paper's table of noise, which names it by its variance: the rows of `defences` that stand for it."""

import itertools

from experiments import tables

# The paper's variances, whether they defend (recalled), and our standard deviations for them.
VARIANCES = {"1e-4": ("no", "1e-2"), "1e-3": ("no", "3e-2"), "1e-2": ("yes", "0.1"), "1e-1": ("yes", "0.316")}
ATTACKS = ("L2", "cosine")


def by_variance() -> tables.Results:
    """A row each kind of noise and variance."""
    rows, summaries = [], []
    for kind, (variance, (defends, sigma)) in itertools.product(("gaussian", "laplace"), VARIANCES.items()):
        told = tables.stored(f"defences/{kind}-{sigma}-rates.json")
        summaries.append(told)
        cells = [cell for name in ATTACKS if told for cell in tables.share(told["attacks"][name], "recovered")]
        rows.append([f"`{kind}:{sigma}`", variance, defends, f"{float(sigma) ** 2:.0e}", *(cells or [tables.NOT_RUN])])
    return tables.Results(
        "Noise by its variance: trials recovered",
        "defences --only gaussian laplace",
        ("defence", "paper: variance", "paper (recalled): defends", "our variance", "L2", "95 %", "cosine", "95 %"),
        rows,
        tables.device(*summaries),
        ("Laplacian noise of variance v has the scale sqrt(v / 2); our number is the standard deviation, sqrt(v).",),
    )
