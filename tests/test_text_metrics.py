"""Measures of texts against definitions by brute force, and how a batch of texts is judged."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxleak.results.matching import batch_metrics, worst_errors
from jaxleak.results.measures import MEASURES
from jaxleak.results.text_metrics import rouge_l, rouge_n, text_metrics, tokens_wrong

TEXTS = st.lists(st.integers(0, 3), min_size=5, max_size=5)


def common(text, truth) -> int:
    """Length of the longest common sequence, by all ways to leave tokens out."""
    parts = [
        {kept for size in range(6) for kept in itertools.combinations(one, size)} for one in (tuple(text), tuple(truth))
    ]
    return max(map(len, parts[0] & parts[1]))


def runs(text, n) -> list[tuple[int, ...]]:
    return [tuple(text[place : place + n]) for place in range(len(text) - n + 1)]


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS)
def test_rouge_is_its_definition(text, truth):
    pair = np.array([text]), np.array([truth])
    assert rouge_l(*pair)[0] == pytest.approx(common(text, truth) / 5)
    for n in (1, 2):
        found, true = runs(text, n), runs(truth, n)
        wanted = sum(min(found.count(one), true.count(one)) for one in set(true)) / len(true)
        assert rouge_n(*pair, n)[0] == pytest.approx(wanted)
    assert tokens_wrong(*pair)[0] == sum(one != other for one, other in zip(text, truth, strict=True))


def test_the_measures_of_a_text():
    found = text_metrics(np.array([[1.0, 2, 3, 9], [4, 3, 2, 1]]), np.array([[1.0, 2, 3, 4]] * 2))
    expected = {
        "mse": [1 / 4, 1],
        "relative_error": [1, 4],
        "tokens_right": [3 / 4, 0],
        "rouge1": [3 / 4, 1],
        "rouge2": [2 / 3, 0],
        "rougel": [3 / 4, 1 / 4],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_tokens_that_differ_are_counted_whichever_is_greater():
    apart = MEASURES["text"].apart([[1, 5, 3, 9]], [[1, 5, 3, 9], [2, 4, 3, 9], [0, 0, 0, 0]])
    assert apart.tolist() == [[0], [0.5], [1]]
    assert MEASURES["text"].apart([[0, 0]], [[1, 2]]).tolist() == [[1]]


def test_texts_of_a_batch_are_matched_by_the_tokens_they_share():
    """The worst of them counts as the trial's error; numbers of tokens near each other are no nearer."""
    truths = np.array([[[1, 2, 3, 4], [5, 6, 7, 8]]], float)
    found = np.array([[[5, 6, 7, 9], [200, 300, 3, 4]]], float)
    measures = MEASURES["text"]
    metrics = batch_metrics(measures, found, truths)
    assert metrics.slots.tolist() == [[1, 0]]
    assert metrics.errors.tolist() == [[2, 1]]
    assert metrics.trials["relative_error"] == [2]
    assert metrics.trials["tokens_right"] == [5 / 8]
    assert worst_errors(measures, found, truths).tolist() == [2]
    assert measures.size(found).tolist() == [0]
