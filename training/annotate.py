"""Labels that no source has: missing categories, and Controversial by cross-annotation.

The tech report of Qwen3Guard (arXiv 2510.14276) takes disagreement between a model trained on a
safe-heavy set and one trained on an unsafe-heavy set for Controversial. Here both are hashed
n-gram logistic regressions, and each half of the data is labelled by models of the other half.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

from training.example import CONTROVERSIAL, JAILBREAK, NONE, UNSAFE, Example


def _features(texts: Sequence[str]):
    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=2**18, alternate_sign=False
    )
    return vectorizer.transform([text[:1000] for text in texts])


def _classifier(weights: dict[bool, float] | str, *, seed: int) -> SGDClassifier:
    return SGDClassifier(
        loss="log_loss",
        alpha=2e-6,
        max_iter=12,
        tol=None,  # pyright: ignore[reportArgumentType]: documented as "do not stop early"
        class_weight=weights,
        random_state=seed,
    )


def fill_categories(examples: Sequence[Example], teachers: Sequence[Example]) -> list[Example]:
    """Give harmful examples without a category the one that a classifier predicts.

    The classifier learns from the harmful examples of both lists that have one.
    """
    known = [
        e
        for e in (*teachers, *examples)
        if e.flagged and e.category not in (NONE, JAILBREAK) and not e.judges_reply
    ]
    unknown = [e for e in examples if e.flagged and e.category == NONE]
    if not unknown:
        return list(examples)
    model = _classifier("balanced", seed=0)
    model.fit(_features([e.turns[0] for e in known]), [e.category for e in known])
    guesses = iter(model.predict(_features([e.turns[0] for e in unknown])))
    return [
        replace(e, category=str(next(guesses))) if e.flagged and e.category == NONE else e
        for e in examples
    ]


def cross_annotate(
    examples: Sequence[Example], *, seed: int, heaviness: float = 8.0
) -> list[Example]:
    """Turn the harmful prompts that two slanted classifiers disagree about into Controversial.

    `heaviness` is how much more the favoured class weighs. Prompts that their source calls
    harmless stay Safe: they are ordinary text, and a guard that doubts them is of no use.
    """
    generator = np.random.default_rng(seed)
    half = generator.integers(0, 2, len(examples))
    features = _features([e.turns[0] for e in examples])
    harmful = np.array([e.flagged for e in examples])
    doubted = np.zeros(len(examples), dtype=bool)
    for teach in (0, 1):
        source, target = half == teach, half != teach
        answers = [
            _classifier(weights, seed=seed)
            .fit(features[source], harmful[source])
            .predict(features[target])
            for weights in ({False: heaviness, True: 1.0}, {False: 1.0, True: heaviness})
        ]
        doubted[target] = answers[0] != answers[1]
    return [
        replace(e, severity=CONTROVERSIAL)
        if e.severity == UNSAFE and e.category != JAILBREAK and doubt
        else e
        for e, doubt in zip(examples, doubted, strict=True)
    ]
