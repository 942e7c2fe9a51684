"""What is asked of an update: of which batches, by which attacks, and the row that comes of it."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxleak.attacks.membership import ENTRIES, SCORES, Residual, membership_features, membership_scores
from jaxleak.attacks.sketch import sketch
from jaxleak.attacks.words import read_words
from jaxleak.data import Dataset
from jaxleak.errors import InputError, check_choice
from jaxleak.runs.infer.classifier import CLASSIFIERS, check_installed, logistic, score
from jaxleak.runs.infer.properties import PROPERTIES
from jaxleak.runs.infer.rows import Row
from jaxleak.runs.infer.updates import ATTACKER, CLIENT, Pool, Shared, draw_batches, half
from jaxleak.threat.victim import Victim

OTHERS = ("same-label", "any")


class Words:
    """Which tokens does the batch hold? Read from the rows of the embedding's gradient.

    Attributes:
        truth, scores: none; the other questions have some.
    """

    truth, scores = "", ()

    def __init__(self, victim: Victim, updates: int, seed: int):
        layer = getattr(victim.model, "embedding", None)
        if victim.modality != "text" or layer is None:
            raise InputError(
                "`what` words needs texts and a network that embeds their tokens: --dataset text --model transformer."
            )
        self.shared, self.pool = Shared(victim), _private(victim)
        self.batches = draw_batches(len(self.pool), updates, victim.batch, np.random.default_rng(seed))
        model: Any = victim.model
        self.never = (model.mask,) if model.task == "masked" else ()
        self._run = self.shared.program(lambda update: update[layer]["embedding"])

    def row(self, number: int) -> Row:
        """Tokens of a batch, those found, and those of them that are right."""
        places = self.batches[number]
        gradient = self._run(self.pool.images[places], self.pool.answers[places], self.shared.key(CLIENT, number))
        found, threshold = read_words(gradient, self.never)
        tokens = np.unique(self.pool.images[places]).astype(int)
        right = int(np.isin(found, tokens).sum())
        return {
            "update": number,
            "texts": self.pool.indices[places].tolist(),
            "tokens": len(tokens),
            "found": len(found),
            "right": right,
            "recall": right / len(tokens),
            "precision": right / len(found) if len(found) else None,
            "threshold": threshold,
        }


class Membership:
    """Is a given record in the batch? Half of the updates hold theirs; other records are of other batches' data.

    An update tells its labels. So others have the label of one of the batch's records ("same-label"), where the client
    has such a record; with "any" label, an attack is right as often as it reads labels. The attacker's own batches say
    what all updates have in common, and train a classifier, with records of which half are in them.
    """

    truth, scores = "member", ("residual", "logistic", *SCORES)

    def __init__(self, victim: Victim, data: Dataset, others: str, updates: int, own_updates: int, seed: int):
        check_installed()
        check_choice("others", others, OTHERS)
        self.shared, self.seed = Shared(victim), seed
        self.sides = {
            whose: self._side(pool, victim.batch, count, others, np.random.default_rng([seed, whose]))
            for whose, pool, count in (
                (CLIENT, _private(victim), updates),
                (ATTACKER, _of_attacker(victim, data, own_updates, seed), own_updates),
            )
        }

        def look(update, record):
            sketches = sketch(update, ENTRIES), sketch(record, ENTRIES)
            return membership_scores(update, record), membership_features(update, record), sketches

        self._run = self.shared.program(look, record=True)

    @staticmethod
    def _side(pool: Pool, batch: int, count: int, others: str, rng: np.random.Generator) -> tuple[Pool, Any, Any, Any]:
        if len(pool) <= batch:
            raise InputError(
                f"`images` must be more than a batch of {batch}, so that there are others; there are {len(pool)}."
            )
        batches, members = draw_batches(len(pool), count, batch, rng), half(count, rng)
        records = [
            rng.choice(places if member else _apart(pool, places, others, rng))
            for places, member in zip(batches, members, strict=True)
        ]
        return pool, batches, members, records

    def _seen(self, whose: int, number: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        pool, batches, _, records = self.sides[whose]
        places, record = batches[number], records[number]
        key = self.shared.key(whose, number)
        return self._run(pool.images[places], pool.answers[places], key, pool.images[record], pool.answers[record])

    @functools.cached_property
    def learned(self) -> tuple[Residual, Any]:
        """Of the attacker's own updates: what they have in common, and a regression on `membership_features`."""
        members = self.sides[ATTACKER][2]
        own = [self._seen(ATTACKER, number) for number in range(len(members))]
        common = Residual.of(np.stack([update for _, _, (update, _) in own]))
        return common, logistic(np.stack([features for _, features, _ in own]), members, self.seed)

    def row(self, number: int) -> Row:
        """The record, whether it is in the batch, and its scores."""
        pool, batches, members, records = self.sides[CLIENT]
        scores, features, (update, record) = self._seen(CLIENT, number)
        common, classifier = self.learned
        return {
            "update": number,
            "images": pool.indices[batches[number]].tolist(),
            "record": int(pool.indices[records[number]]),
            "member": bool(members[number]),
            "label_in_batch": bool(_alike(pool, batches[number], records[number]).any()),
            "residual": common.cosine(update, record),
            "logistic": score(classifier, features),
            **{name: float(value) for name, value in zip(SCORES, scores, strict=True)},
        }


class Property:
    """Has the batch a property? Half of the updates have it in all their images.

    Classifiers are trained on sketches of updates of the attacker's own batches, half of them with the property.
    """

    truth, scores = "has", tuple(CLASSIFIERS)

    def __init__(self, victim: Victim, data: Dataset, name: str, updates: int, own_updates: int, seed: int):
        check_installed()
        self.given = PROPERTIES[check_choice("property", name, PROPERTIES)]
        if victim.modality != "image":
            raise InputError("`what` property is for pictures; of texts ask for words.")
        self.shared, self.seed = Shared(victim), seed
        self.sides = {}
        for whose, pool, count in (
            (CLIENT, _private(victim), updates),
            (ATTACKER, _of_attacker(victim, data, own_updates, seed), own_updates),
        ):
            rng = np.random.default_rng([seed, whose])
            self.given(pool.images[:1])
            self.sides[whose] = pool, draw_batches(len(pool), count, victim.batch, rng), half(count, rng)
        self._run = self.shared.program(sketch)

    def _seen(self, whose: int, number: int) -> np.ndarray:
        pool, batches, having = self.sides[whose]
        places = batches[number]
        images = pool.images[places]
        images = self.given(images) if having[number] else images
        return self._run(images, pool.answers[places], self.shared.key(whose, number))

    @functools.cached_property
    def classifiers(self) -> dict[str, Any]:
        """Of sketches, by name."""
        having = self.sides[ATTACKER][2]
        features = np.stack([self._seen(ATTACKER, number) for number in range(len(having))])
        return {name: fit(features, having, self.seed) for name, fit in CLASSIFIERS.items()}

    def row(self, number: int) -> Row:
        """Whether the batch has the property, and its scores."""
        pool, batches, having = self.sides[CLIENT]
        features = self._seen(CLIENT, number)
        return {
            "update": number,
            "images": pool.indices[batches[number]].tolist(),
            "has": bool(having[number]),
            **{name: score(model, features) for name, model in self.classifiers.items()},
        }


def _alike(pool: Pool, places: np.ndarray, place: int) -> np.ndarray:
    """Which of these have the label of that one [n]."""
    return np.all((pool.answers[places] == pool.answers[place]).reshape(len(places), -1), axis=1)


def _apart(pool: Pool, places: np.ndarray, others: str, rng: np.random.Generator) -> np.ndarray:
    """Places outside of a batch, with "same-label" those with the label of one of its records if there are any."""
    outside = np.setdiff1d(np.arange(len(pool)), places)
    alike = outside[_alike(pool, outside, rng.choice(places))] if others == "same-label" else outside
    return alike if len(alike) else outside


def _private(victim: Victim) -> Pool:
    """What the client's batches are drawn from."""
    if not victim.knows_truth or not victim.knows_labels:
        raise InputError("`infer` computes updates, and needs the client's data with their labels.")
    return Pool(np.asarray(victim.indices), np.asarray(victim.images), np.asarray(victim.answers))


def _of_attacker(victim: Victim, data: Dataset | None, updates: int, seed: int) -> Pool:
    """The attacker's own data: others of the same data set, as many as its batches take where there are so many.

    Raises:
        InputError: no data set, or too few others.
    """
    if data is None:
        raise InputError("`data` must be the data set: the attacker's own batches are of its other images.")
    others = np.random.default_rng(seed).permutation(np.setdiff1d(data.index, victim.indices))
    chosen = [int(index) for index in others[: updates * victim.batch]]
    if len(chosen) <= victim.batch:
        raise InputError(
            f"`images` leave {len(chosen)} of {data.name} to the attacker, whose own batches have {victim.batch}. Use "
            "fewer --images, or a smaller --batch."
        )
    images, labels = data.images(chosen)
    targets = data.targets(chosen)
    answers = labels if targets is None else targets
    if targets is None and victim.has_vectors:
        answers = np.asarray(victim.client.loss.target(jnp.asarray(labels), victim.num_classes, float))
    return Pool(np.asarray(chosen), images, np.asarray(answers))
