"""Adversarial training: the attack's optimum in closed form, the ramp, the modes of the network, the judge's table."""

import functools

import pytest
import torch
from torch import Tensor, nn

from dp.attacks.pgd_eot import PGD
from dp.classifiers import Classifier
from dp.nets.wrn import WideResNet
from dp.rng import Streams
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel
from dp.training.tasks.adversarial import SHARES, Adversarial, attacked, scaled
from dp.training.trainer import Training

EPS = 0.03
PGD_5, PGD_10 = (PGD(iterations=k, eot=1, select="last") for k in (5, 10))


class Linear(nn.Module):
    """Logits (B,2): 0 and the sum of w x + b."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(1, 4, 4, generator=generator))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        score = (self.w * x).sum(dim=(1, 2, 3)) + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def images(n: int = 40) -> Subset:
    """Images in the middle of the box, so that it cuts no perturbation."""
    generator = torch.Generator().manual_seed(0)
    return Subset(torch.arange(n), 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=generator), torch.arange(n) % 2)


def task_of(net: nn.Module, data: Subset | None = None, ramp: int = 4) -> Adversarial:
    given = {"threat": ThreatModel("linf", EPS), "attack": PGD_5, "judge_attack": PGD_10, "ramp": ramp}
    return Adversarial(Classifier(net), data or images(), **given)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_attack_ends_in_the_worst_corner_of_a_linear_classifier(share):
    data, net = images(), Linear()
    threat = scaled(ThreatModel("linf", EPS), share)
    found = attacked(Classifier(net), PGD_5, data.x, data.y, threat, Streams(data.ids, 0, "train"))
    sign = (1 - 2 * data.y).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, data.x + share * EPS * sign * net.w.sign())
    alone = attacked(Classifier(net), PGD_5, data.x[7:8], data.y[7:8], threat, Streams([7], 0, "train"))
    torch.testing.assert_close(alone, found[7:8])


def test_the_loss_is_that_of_the_worst_corner_and_eps_grows_along_the_ramp():
    """At the corner the score of the wrong class has grown by eps |w|_1."""
    net = Linear()
    task = task_of(net, ramp=4)
    net.requires_grad_(True).train()
    x, y, names = task.draw(16, torch.Generator().manual_seed(0))
    margin = (net(x)[:, 1] * (2 * y - 1)).detach()
    length = net.w.abs().sum().item()
    for done, share in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        task.after_step(done)
        expected = nn.functional.softplus(-(margin - share * EPS * length)).mean().item()
        assert task.loss(x, y, names).item() == pytest.approx(expected, rel=1e-4)
    other = task_of(Linear())
    other.restore(task.state())
    assert other.steps == 9


def test_the_attack_leaves_the_statistics_alone_and_the_step_is_in_training_mode():
    """Batch normalization changes its statistics once for a batch, by the attacked images."""
    torch.manual_seed(0)
    net = WideResNet(depth=10, widen=1, channels=1)
    data = Subset(torch.arange(20), torch.rand(20, 1, 16, 16), torch.arange(20) % 10)
    task = task_of(net, data, ramp=1)
    net.train().requires_grad_(True)
    norm = net.block1.layer[0].bn1
    task.loss(*task.draw(8, torch.Generator().manual_seed(0))).backward()
    assert norm.num_batches_tracked.item() == 1
    assert net.training
    assert all(p.grad is not None for p in net.parameters())


def test_resume_is_exact(tmp_path):
    def made() -> Training:
        torch.manual_seed(0)
        task = task_of(Linear())
        sgd = functools.partial(torch.optim.SGD, lr=0.1)
        constant = functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
        return Training(task, seed=1, steps=6, batch=16, optimizer=sgd, schedule=constant, log_every=1, save_every=3)

    def stop(now: Training) -> None:
        if now.step == 5:
            raise KeyboardInterrupt

    whole = made()
    whole.run(tmp_path / "whole.pt", lambda _: None, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        made().run(tmp_path / "state.pt", stop, lambda _: None)
    again = made()
    again.restore(tmp_path / "state.pt")
    assert (again.step, again.task.steps) == (3, 3)
    again.run(tmp_path / "state.pt", lambda _: None, lambda _: None)
    assert torch.equal(again.net.w, whole.net.w)
    assert again.history == whole.history


def test_the_judges_table_is_the_share_of_margins_beyond_the_perturbation(tmp_path, capsys):
    """Of a linear classifier an image is robust at eps where its margin is above eps |w|_1."""
    net, data = Linear(), images(200)
    net.b.data -= net(data.x)[:, 1].median() + 1e-3
    data = data._replace(y=(net(data.x)[:, 1] > 0).long())
    task = task_of(net, data)
    figures = task.judge(data, tmp_path, seed=0)
    margins, length = net(data.x)[:, 1].abs(), net.w.abs().sum()
    rows = [line.split(",") for line in (tmp_path / "judge.csv").read_text().splitlines()[1:]]
    assert [float(eps) for eps, _ in rows] == pytest.approx([0, *(share * EPS for share in SHARES)])
    expected = [100 * (margins > float(eps) * length).float().mean().item() for eps, _ in rows]
    assert [float(percent) for _, percent in rows] == pytest.approx(expected, abs=1e-3)
    assert expected[0] == 100 > expected[1] > expected[-1] > 0
    assert figures["accuracy"] == 100
    assert figures["robust/eps=0.03"] == pytest.approx(expected[-1])
    assert (tmp_path / "attacked.png").exists()
    assert "under PGD, 10 steps" in capsys.readouterr().out.replace("\n", " ")


def test_a_wrong_ramp_is_one_sentence():
    with pytest.raises(ValueError, match="need ramp >= 1 steps, got ramp=0"):
        task_of(Linear(), ramp=0)
