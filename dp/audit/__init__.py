"""The audit: checks that expose gradient masking and broken evaluations (evaluation.md section 3). Each is a function
of a Subject that returns a Finding and prints nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dp.datasets import Subset
from dp.evaluate import Arm, Evaluation

VERDICTS = ("PASS", "WARN", "FAIL", "INFO")


@dataclass(frozen=True)
class Finding:
    """What one check found. PASS: as it should be; WARN: the number may be too high; FAIL: the number is wrong or the
    evaluation broken; INFO: there is nothing to hold it against.
    """

    check: str  # its name, one or two words, as in a table
    value: str  # what was measured
    threshold: str  # what it was held against
    verdict: str
    count: str  # images, draws, iterations that went into it
    seconds: float
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of a picture: `x` and a series per name


@dataclass(frozen=True)
class Subject:
    """What is audited: a run's evaluation and what is claimed of it.

    `images`: the few images that checks ask about, on the evaluation's device; `claims`: the gradient that the run says
    it takes (`exact`, or the names of approximate views, see `differences.gradients`); `declared`: the differences
    between attacked and scored defence that its summary lists; `quick`: the small audit before a long job; `memo`: what
    one check found at length and another needs, by name; a changed copy starts without.
    """

    evaluation: Evaluation
    images: Subset
    claims: str
    declared: Sequence[str] = field(default_factory=list)
    quick: bool = False
    memo: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def arm(self) -> Arm:
        """The defended arm: attacked, scored, attack."""
        return self.evaluation.arms["defended"]

    @property
    def seed(self) -> int:
        return self.evaluation.seeds[0]
