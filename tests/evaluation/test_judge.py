"""The judge's rules on logits made by hand."""

import pytest
import torch

from dp.evaluation.judge import Judge
from dp.rng import Streams

# (draws,B,K): image 0 right in all four draws, image 1 in three, image 2 in two, image 3 in none; labels 0.
CLASSES = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 2], [0, 0, 1, 2]])
LOGITS = torch.nn.functional.one_hot(CLASSES, 3).float()
LABELS = torch.zeros(4, dtype=torch.long)
X = torch.zeros(4, 1, 2, 2)


class Fixed:
    """A defence whose draws have these logits; remembers what it was asked with."""

    def __init__(self, *answers: torch.Tensor):
        self.answers, self.asked = list(answers), []

    def logits(self, x, rng, draws):
        self.asked.append((draws, rng.keys))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        assert len(answer) == draws
        return answer

    def logits_of(self, asked, images, rng, draws):
        self.few = [b for _, b in asked]
        return self.logits(images[0], rng, draws)[:, self.few]


def evaluate(judge: Judge, model: Fixed, at=(0, 0, 0, 0), ties: str = "lowest"):
    return judge.evaluate(model, X, LABELS, Streams(range(4), 0, "select"), at, ties)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("rule", "lost"),
    [
        ("any", [False, True, True, True]),
        ("all", [False, False, False, True]),
        ("vote", [False, False, False, True]),  # image 2 is tied and ties go to the lowest class, its label
        ("mean_logits", [False, False, False, True]),
    ],
)
def test_rules(rule, lost):
    seen = evaluate(Judge(every=1, draws=4, rule=rule), Fixed(LOGITS))
    assert seen.broken.tolist() == lost
    assert seen.wrong.tolist() == [0, 1, 2, 4]
    assert torch.equal(seen.classes, CLASSES)
    # Margins by hand: a right one-hot draw has -1, a wrong one +1.
    assert seen.margin.tolist() == [-1.0, -0.5, 0.0, 1.0]


def test_mean_logits_and_vote_part_where_one_draw_is_loud():
    loud = LOGITS.clone()
    loud[2, 1, 1] = 10.0  # image 1: one wrong draw outweighs three right ones
    assert evaluate(Judge(1, 4, "mean_logits"), Fixed(loud)).broken.tolist() == [False, True, False, True]
    assert evaluate(Judge(1, 4, "vote"), Fixed(loud)).broken.tolist() == [False, False, False, True]


def test_a_screen_asks_the_many_only_when_the_few_say_lost():
    """Two draws screen, four others verify; what the screen lets pass is not lost whatever the others say."""
    right = torch.nn.functional.one_hot(torch.zeros(2, 4, dtype=torch.long), 3).float()
    model = Fixed(right, LOGITS)
    assert not evaluate(Judge(1, 4, "any", screen=2), model).broken.any()
    assert len(model.asked) == 1
    suspicious = right.clone()
    suspicious[:, 1] = torch.tensor([0.0, 1.0, 0.0])  # image 1 alone
    model = Fixed(suspicious, LOGITS)
    assert evaluate(Judge(1, 4, "any", screen=2), model).broken.tolist() == [False, True, False, False]
    assert model.few == [1]  # the others are not asked again
    assert [draws for draws, _ in model.asked] == [2, 4]
    assert not set(model.asked[0][1]) & set(model.asked[1][1])  # draws of their own


@pytest.mark.parametrize("in_loop", [True, False])
def test_looks_share_their_draws_only_when_they_select(in_loop):
    model = Fixed(LOGITS)
    judge = Judge(1, 4, "all", in_loop=in_loop)
    evaluate(judge, model, at=(0, 0, 0, 0))
    evaluate(judge, model, at=(3, 3, 3, 0))
    (_, first), (_, second) = model.asked
    assert (first[0] == second[0]) is not in_loop
    assert first[3] == second[3]  # the same image at the same iteration


@pytest.mark.parametrize("bad", [{"every": 0}, {"draws": 0}, {"screen": -1}, {"rule": "some"}])
def test_wrong_values(bad):
    with pytest.raises(ValueError, match="need every, draws >= 1"):
        Judge(**{"every": 1, "draws": 1, "rule": "any", **bad})
