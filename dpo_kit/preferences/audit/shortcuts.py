"""Can the label be told from the surface? Then a model can learn the surface instead of what the judge meant.

For each feature: among the pairs whose two answers differ in it, how often does the chosen answer have more? For all
features together: a logistic regression on the differences, cross-validated with each prompt in one fold. A coin draws
which side is "first", so the label is balanced, and who knows nothing is right in 50%. Intervals are Wilson's over
prompts and not over rows, since the rows of one prompt are not independent.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from dpo_kit.records import PreferencePair

ENOUGH = 50  # prompts; with fewer the classifier measures nothing
BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:sorry|unable|not able|not going to|not comfortable)|\bas an ai\b"
    r"|\bi (?:can'?t|cannot|won't|will not|apologi[sz]e)\b"
)
WILLING = ("sure", "of course", "certainly", "yes", "absolutely", "great question", "here")


def _opening(text: str) -> str:
    return text[:200].lower().replace("’", "'")


FEATURES: dict[str, Callable[[str], float]] = {
    "words": lambda text: len(text.split()),
    "letters a word": lambda text: round(len(text) / max(len(text.split()), 1), 2),
    "line breaks": lambda text: text.count("\n"),
    "list items": lambda text: len(BULLET.findall(text)) if text.strip() else 0,
    "bold or headings": lambda text: text.count("**") + text.count("\n#") + text.startswith("#"),
    "code fences": lambda text: text.count("```"),
    "digits": lambda text: sum(map(text.count, "0123456789")),
    "question marks": lambda text: text.count("?"),
    "exclamation marks": lambda text: text.count("!"),
    "commas": lambda text: text.count(","),
    "links": lambda text: text.count("http"),
    "refusal": lambda text: REFUSAL.search(_opening(text)) is not None,
    "opens willingly": lambda text: _opening(text).lstrip().startswith(WILLING),
    "opens with I": lambda text: text.lstrip().startswith(("I ", "I'", "I’")),
    "opens in capitals": lambda text: text.lstrip()[:1].isupper(),
    "ends in a full stop": lambda text: text.rstrip().endswith("."),
}


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """The 95% Wilson interval of a share; (0, 1) where nothing was tried."""
    return tuple(map(float, proportion_confint(successes, trials, method="wilson"))) if trials else (0.0, 1.0)


@dataclass(frozen=True)
class Shortcut:
    """One feature: of `decided` pairs that differ in it, the `share` where chosen has more, with its 95% interval.

    `accuracy` is that of guessing the label by this feature alone on all pairs, by a coin where they do not differ.
    """

    feature: str
    decided: int
    share: float
    low: float
    high: float
    accuracy: float

    @property
    def direction(self) -> str:
        """Which way the label leans, and how often guessing by it is right, such as "more words 61%"."""
        return f"{'more' if self.share > 0.5 else 'less'} {self.feature} {self.accuracy:.0%}"


@dataclass(frozen=True)
class Classifier:
    """How often all features together tell chosen from rejected on prompts that were not trained on."""

    accuracy: float
    low: float
    high: float
    prompts: int


def differences(pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Chosen minus rejected in each feature, `(len(pairs), len(FEATURES))`."""
    rows = [[f(p.chosen.text) - f(p.rejected.text) for f in FEATURES.values()] for p in pairs]
    return np.array(rows, dtype=float).reshape(len(pairs), len(FEATURES))


def by_feature(differences: np.ndarray, prompts: Sequence[int]) -> list[Shortcut]:
    """Each feature alone, the strongest first. `prompts` has the number of each row's prompt."""
    groups = np.asarray(prompts)
    found = [_shortcut(name, column, groups) for name, column in zip(FEATURES, differences.T, strict=True)]
    return sorted(found, key=lambda shortcut: -shortcut.accuracy)


def _shortcut(name: str, column: np.ndarray, groups: np.ndarray) -> Shortcut:
    decided = np.flatnonzero(column)
    if not len(decided):
        return Shortcut(name, 0, 0.5, 0.0, 1.0, 0.5)
    share = float((column[decided] > 0).mean())
    n = len(np.unique(groups[decided]))
    accuracy = 0.5 + abs(share - 0.5) * len(decided) / len(column)
    return Shortcut(name, len(decided), share, *wilson(share * n, n), accuracy)


def classify(differences: np.ndarray, prompts: Sequence[int], seed: int = 0) -> Classifier | None:
    """The cross-validated accuracy of a linear classifier on the differences; None with fewer than `ENOUGH` prompts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = len(np.unique(prompts))
    if n < ENOUGH:
        return None
    sides = np.random.default_rng(seed).choice((-1, 1), len(differences))
    # Counts have long tails; a signed logarithm keeps one 3,000-word answer from deciding the fit.
    columns = np.sign(differences) * np.log1p(np.abs(differences)) * sides[:, None]  # (rows, features)
    # Neither a mean nor an intercept: with the sides exchanged, the classifier must say the opposite.
    model = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False))
    # By prompt: a classifier that saw other pairs of a prompt could know its answers and not the judge's taste.
    guesses = cross_val_predict(model, columns, sides > 0, groups=prompts, cv=GroupKFold(5))
    accuracy = float((guesses == (sides > 0)).mean())
    return Classifier(accuracy, *wilson(accuracy * n, n), n)
