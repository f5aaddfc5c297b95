"""The judge's rules on logits made by hand."""

import pytest
import torch

from dp.evaluation.judge import Judge
from dp.rng import Streams

# (samples,B,K): image 0 right in all four samples, image 1 in three, image 2 in two, image 3 in none; labels 0.
CLASSES = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 2], [0, 0, 1, 2]])
LOGITS = torch.nn.functional.one_hot(CLASSES, 3).float()
LABELS = torch.zeros(4, dtype=torch.long)
X = torch.zeros(4, 1, 2, 2)


class Fixed:
    """A defense whose samples have these logits; it records its queries."""

    def __init__(self, *answers: torch.Tensor):
        self.answers, self.queries = list(answers), []

    def logits(self, x, rng, samples):
        self.queries.append((samples, rng.keys))
        answer = self.answers[min(len(self.queries), len(self.answers)) - 1]
        assert len(answer) == samples
        return answer

    def logits_of(self, queries, images, rng, samples):
        self.few = [b for _, b in queries]
        return self.logits(images[0], rng, samples)[:, self.few]


def evaluate(judge: Judge, model: Fixed, at=(0, 0, 0, 0), ties: str = "lowest"):
    return judge.evaluate(model, X, LABELS, Streams(range(4), 0, "select"), at, ties)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("any", [False, True, True, True]),
        ("all", [False, False, False, True]),
        ("vote", [False, False, False, True]),  # image 2 is tied and ties go to the lowest class, its label
        ("mean_logits", [False, False, False, True]),
    ],
)
def test_rules(rule, broken):
    seen = evaluate(Judge(every=1, draws=4, rule=rule), Fixed(LOGITS))
    assert seen.broken.tolist() == broken
    assert seen.wrong.tolist() == [0, 1, 2, 4]
    assert torch.equal(seen.classes, CLASSES)
    # Margins by hand: a right one-hot sample has -1, a wrong one +1.
    assert seen.margin.tolist() == [-1.0, -0.5, 0.0, 1.0]


def test_mean_logits_and_vote_differ_where_one_sample_has_large_logits():
    large = LOGITS.clone()
    large[2, 1, 1] = 10.0  # image 1: one wrong sample outweighs three right ones
    assert evaluate(Judge(1, 4, "mean_logits"), Fixed(large)).broken.tolist() == [False, True, False, True]
    assert evaluate(Judge(1, 4, "vote"), Fixed(large)).broken.tolist() == [False, False, False, True]


def test_the_second_stage_is_evaluated_only_where_the_first_one_is_broken():
    """Two samples in the first stage, four others in the second. An image that the first stage does not call broken is
    not broken.
    """
    right = torch.nn.functional.one_hot(torch.zeros(2, 4, dtype=torch.long), 3).float()
    model = Fixed(right, LOGITS)
    assert not evaluate(Judge(1, 4, "any", screen=2), model).broken.any()
    assert len(model.queries) == 1
    suspicious = right.clone()
    suspicious[:, 1] = torch.tensor([0.0, 1.0, 0.0])  # image 1 alone
    model = Fixed(suspicious, LOGITS)
    assert evaluate(Judge(1, 4, "any", screen=2), model).broken.tolist() == [False, True, False, False]
    assert model.few == [1]  # the others are not evaluated again
    assert [samples for samples, _ in model.queries] == [2, 4]
    assert not set(model.queries[0][1]) & set(model.queries[1][1])  # the stages share no noise


@pytest.mark.parametrize("in_loop", [True, False])
def test_evaluations_share_their_samples_only_when_they_select(in_loop):
    model = Fixed(LOGITS)
    judge = Judge(1, 4, "all", in_loop=in_loop)
    evaluate(judge, model, at=(0, 0, 0, 0))
    evaluate(judge, model, at=(3, 3, 3, 0))
    (_, first), (_, second) = model.queries
    assert (first[0] == second[0]) is not in_loop
    assert first[3] == second[3]  # the same image at the same iteration


@pytest.mark.parametrize("bad", [{"every": 0}, {"draws": 0}, {"screen": -1}, {"rule": "some"}])
def test_wrong_values(bad):
    with pytest.raises(ValueError, match="need every, draws >= 1"):
        Judge(**{"every": 1, "draws": 1, "rule": "any", **bad})
