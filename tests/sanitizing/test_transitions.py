"""Steps 2 and 3 on tables of labels that are made by hand, and against the definitions in plain Python."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from dp.sanitizing.transitions import candidates, divergences, find, scores

# The image's own label, then those of six states; second = 2.
TABLE = [
    [0, 0, 0, 0, 0, 0, 0],  # all agree
    [0, 7, 7, 7, 7, 7, 7],  # the states agree on another label: unanimous, a transition
    [0, 7, 7, 7, 7, 7, 0],  # one state off: it is dropped
    [0, 0, 0, 0, 0, 7, 0],  # one state off, the others agree with the image: no transition
    [0, 7, 7, 0, 0, 0, 0],  # the second label twice: all are candidates
    [0, 3, 3, 3, 7, 7, 7],  # equally frequent: 3 comes first
    [0, 7, 7, 7, 3, 3, 3],  # here 7 comes first
    [7, 7, 0, 7, 7, 7, 7],  # its own label is no state's
]


def test_candidates_by_hand():
    found = candidates(torch.tensor(TABLE), second=2)
    assert found.majority.tolist() == [0, 7, 7, 0, 0, 3, 7, 7]
    assert found.unanimous.tolist() == [True, True, True, True, False, False, False, True]
    assert found.transition.tolist() == [False, True, True, False, True, True, True, False]
    assert found.states.sum(1).tolist() == [7, 7, 6, 6, 7, 7, 7, 6]
    assert found.states[:, 0].all()
    assert not found.states[2, 6]


def by_hand(row: list[int], second: int) -> list[int]:
    """The places of the candidates, by the words of the method."""
    count = Counter(row[1:]).most_common()
    if len(count) == 1 or count[1][1] >= second:
        return list(range(len(row)))
    return [0, *(j for j, label in enumerate(row) if j and label == count[0][0])]


def test_candidates_equal_the_definition_on_random_tables():
    rng = random.Random(0)
    rows = [[rng.choice([1, 1, 1, 1, 2, 4, rng.randrange(6)]) for _ in range(11)] for _ in range(400)]
    found = candidates(torch.tensor(rows), second=3)
    for k, row in enumerate(rows):
        places = by_hand(row, 3)
        assert found.states[k].nonzero().flatten().tolist() == places
        assert found.transition[k] == (len({row[j] for j in places}) > 1)
        assert found.unanimous[k] == (len({row[j] for j in places[1:]}) == 1)
        assert found.majority[k] == Counter(row[1:]).most_common(1)[0][0]


def test_divergence_by_hand():
    labels = torch.tensor(TABLE)
    found = candidates(labels, second=2)
    y = torch.tensor([0, 0, 0, 0, 5, 5, 7, 9])
    got, lost = divergences(labels, found, y, torch.tensor([0, 5, 7, 9]))
    # 0: images 1 and 2, of 7 and 6 candidates two have the label 0. 5: images 4 and 5, 14 candidates, none is a 5: half
    # a label. 7: image 6, 7 candidates, three are 7. 9: no image with a transition.
    assert got.tolist() == pytest.approx([math.log(13 / 2), math.log(14 / 0.5), math.log(7 / 3), 0.0])
    assert lost.tolist() == [False, True, False, False]


def test_scores_are_robust():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0], dtype=torch.float64)
    assert scores(values).tolist() == pytest.approx([2 / 1.4826, 1 / 1.4826, 0, 1 / 1.4826, 97 / 1.4826], rel=1e-5)
    assert scores(torch.zeros(3, dtype=torch.float64)).tolist() == [0, 0, 0]


def test_only_images_of_flagged_classes_with_a_transition_change():
    clean = [[k] * 7 for k in range(5) for _ in range(4)]
    for k in range(5):
        clean[4 * k] = [k, (k + 1) % 5, (k + 1) % 5, k, k, k, k]  # a natural transition: a part of the states
    poisoned = [[0, 3, 3, 3, 3, 3, 3], [0, 2, 2, 2, 2, 2, 2], [0, 2, 2, 2, 4, 4, 4]]
    y = torch.tensor([k for k in range(5) for _ in range(4)] + [0, 0, 0])
    found = find(torch.tensor(clean + poisoned), y, second=2, threshold=2.0)
    assert found.flagged.tolist() == [0]
    assert found.sure.nonzero().flatten().tolist() == [20, 21]
    assert found.suspicious.nonzero().flatten().tolist() == [0, 22]
    assert found.candidates.transition.sum() == 8


def test_one_class_with_transitions_is_found():
    """In the other classes nothing changes its label: a division by zero in the released code."""
    labels = torch.tensor([[k] * 5 for k in range(4)] + [[0, 2, 2, 2, 2]])
    found = find(labels, torch.tensor([0, 1, 2, 3, 0]), second=2, threshold=2.0)
    assert found.flagged.tolist() == [0]
    assert found.divergence.isfinite().all()


def transitions_of(label: int, own: int, others: int) -> list[list[int]]:
    """Images of a class, all with a transition: candidates with `own` times the label, and others of two kinds."""
    n, half = (own + others) // 7, others // 2
    seen = [label] * own + [(label + 1) % 4] * half + [(label + 2) % 4] * (others - half)
    return [seen[k::n] for k in range(n)]


def test_a_class_that_is_never_seen_as_itself_is_flagged_whatever_its_score():
    """Four classes of divergence infinite, .79, 1.30 and 2.40: numpy's median of the released code is 1.85, that of the
    distances .805, and the score of the first class infinite. With half a label of its own the score is below 2.
    """
    sizes = [(0, 14), (19, 23), (23, 61), (5, 51)]  # labels of the class itself, and others
    rows = [transitions_of(k, *size) for k, size in enumerate(sizes)]
    y = torch.tensor([k for k, mine in enumerate(rows) for _ in mine])
    found = find(torch.tensor([row for mine in rows for row in mine]), y, second=1, threshold=2.0)
    code = np.array([np.inf, *(math.log((own + others) / own) for own, others in sizes[1:])])
    off = np.abs(code - np.median(code))
    assert (off / 1.4826 / (np.median(off) + 1e-6) > 2).tolist() == [True, False, False, False]
    assert found.divergence[1:].tolist() == pytest.approx([0.79, 1.30, 2.42], abs=0.01)
    assert found.score[0] < 2
    assert found.flagged.tolist() == [0]


def test_nothing_is_flagged_if_half_of_the_classes_are_never_seen_as_themselves():
    """The scores of the released code are not numbers then."""
    sizes = [(0, 14), (0, 14), (23, 61), (23, 61)]
    rows = [transitions_of(k, *size) for k, size in enumerate(sizes)]
    y = torch.tensor([k for k, mine in enumerate(rows) for _ in mine])
    found = find(torch.tensor([row for mine in rows for row in mine]), y, second=1, threshold=2.0)
    assert not found.flagged.tolist()


def test_labels_that_a_set_lacks_do_not_count():
    """A classifier of a thousand labels and a set of three: the median is that of the three."""
    labels = torch.tensor([[k, k, k] for k in (5, 70, 900)] + [[5, 900, 900]])
    found = find(labels, torch.tensor([5, 70, 900, 5]), second=2, threshold=2.0)
    assert found.classes.tolist() == [5, 70, 900]
    assert found.flagged.tolist() == [5]
