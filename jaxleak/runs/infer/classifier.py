"""Classifiers of features of updates."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxleak.errors import InputError

TREES = 300
Features = Float[np.ndarray, "n f"]


def check_installed() -> None:
    """Raise unless scikit-learn is here.

    Raises:
        InputError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError(
            "`infer` trains classifiers with scikit-learn, which is not installed: pip install 'jaxleak[infer]'. "
            "--what words needs none."
        ) from None


def logistic(features: Features, members: Bool[np.ndarray, "n"], seed: int) -> Any:
    """Logistic regression on standardised features, with an L2 penalty (C = 1)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))
    return model.fit(features, members)


def forest(features: Features, members: Bool[np.ndarray, "n"], seed: int) -> Any:
    """A random forest of 300 trees, on features as they are."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(TREES, random_state=seed).fit(features, members)


CLASSIFIERS = {"logistic": logistic, "forest": forest}


def score(model: Any, features: Float[np.ndarray, "f"]) -> float:
    """Score of membership: of the regression its log-odds, which do not saturate, of the forest a probability."""
    if hasattr(model, "decision_function"):
        return float(model.decision_function(features[None])[0])
    return float(model.predict_proba(features[None])[0, 1])
