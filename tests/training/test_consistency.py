"""Consistency models: the published code's numbers, the flow of Gaussian data in closed form, and the judge's table."""

import math

import pytest
import torch
from torch import Tensor, nn

from dp.classifiers import Classifier
from dp.diffusion.denoisers import EDM, Consistency, Denoiser, Gaussian
from dp.diffusion.sampling import karras_levels, to_pm1
from dp.nets.small_unet import SmallUNet
from dp.subset import Subset
from dp.training.tasks import consistency
from dp.training.tasks.distillation import Distillation, flowed
from dp.training.tasks.perceptual import PerceptualTuning
from tests.helpers import parity

STD = 0.5


class TinyNet(nn.Module):
    """The file's network: b(silu(a(x) + e(sin q, cos q))), q = label / 250."""

    def __init__(self, tensors: dict[str, Tensor], name: str):
        super().__init__()
        weights = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        width, channels = weights["a.weight"].shape[:2]
        self.a, self.b = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.e = nn.Linear(2, width)
        self.double().load_state_dict(weights)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        q = label[:, None] / 250
        return self.b(nn.functional.silu(self.a(x) + self.e(torch.cat([q.sin(), q.cos()], 1))[:, :, None, None]))


def assert_near(found: Tensor, expected: Tensor, within: float = 1e-5) -> None:
    """To a share of the largest entry."""
    assert (found - expected).abs().max() <= within * expected.abs().max()


def classifier(channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(1, channels, 16 if channels == 1 else 8, 16 if channels == 1 else 8))
    return Classifier(net, taps=("0", "2"))


@parity.of("consistency")
def test_one_call_is_that_of_the_published_code(path):
    file = parity.Recorded(path)
    u, sigma = file["u"].requires_grad_(), file["sigma"].view(-1, 1, 1, 1)
    z = 2 * u - 1 + sigma * file["z"]
    model = Consistency(TinyNet(file.tensors, "net"))
    found = model(z, sigma)
    assert_near(found, file["denoised"])
    (gradient,) = torch.autograd.grad((file["w"] * found).sum(), u)
    assert_near(gradient, file["gradient"])
    assert_near(Consistency(TinyNet(file.tensors, "teacher"), boundary=False)(z, sigma), file["teacher_denoised"])


@parity.of("consistency")
def test_distillation_is_that_of_the_published_code(path):
    """The grid, the loss of each image, and its gradient in every weight."""
    file = parity.Recorded(path)
    sets = file.settings
    x, n, index = 2 * file["u"] - 1, file["draw.0"], file["draw.1"]
    data = Subset(torch.arange(len(x)), file["u"], torch.zeros(len(x), dtype=torch.long))
    model = Consistency(TinyNet(file.tensors, "net"))
    given = {"levels": sets["num_scales"], "high": sets["sigma_max"], "rho": sets["rho"], "target_decay": 0.9}
    teacher = Consistency(TinyNet(file.tensors, "teacher"), boundary=False)
    task = Distillation(model, data, teacher=teacher, classifier=classifier(), **given)
    task.target.net.load_state_dict(TinyNet(file.tensors, "target").state_dict())
    assert_near(task.levels, file["grid"][:-1])
    model.net.requires_grad_(True)
    each = torch.stack([task.loss(x[i : i + 1], n[i : i + 1], index[i : i + 1]) for i in range(len(x))])
    assert_near(each, file["loss"])
    loss = task.loss(x, n, index)
    assert_near(loss, file["loss"].mean())
    for (name, _), gradient in zip(
        model.net.named_parameters(), torch.autograd.grad(loss, list(model.net.parameters())), strict=True
    ):
        assert_near(gradient, file[f"loss_gradient.{name}"])


def factor(s: Tensor, s_next: Tensor) -> Tensor:
    """The flow of data N(0, STD^2) is linear: it multiplies z by this."""
    return ((STD**2 + s_next**2) / (STD**2 + s**2)).sqrt()


def test_a_step_of_the_flow_is_of_second_order():
    """Against the closed form of Gaussian data: half the step, an eighth of the error."""
    z = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    errors = []
    for width in (0.2, 0.1, 0.05):
        s, s_next = (torch.full((1, 1, 1, 1), level, dtype=torch.float64) for level in (1.0, 1.0 - width))
        errors.append((flowed(Gaussian(0.0, STD), z, s, s_next) - factor(s, s_next) * z).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.1)


class Linear(nn.Module):
    """F for which D(z, s) = gain(s) z behind a `Consistency` adapter with clock 1 and sigma_data .5."""

    def __init__(self, gain):
        super().__init__()
        self.gain, self.unused = gain, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        s = label.exp().view(-1, 1, 1, 1)
        total, above = s**2 + 0.25, s - 0.002
        z = x * total.sqrt()
        return z * (self.gain(s) - 0.25 / (above**2 + 0.25)) * total.sqrt() / (0.5 * above).clamp(min=1e-9)


def gaussian_data(n: int) -> Subset:
    x = STD * torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    return Subset(torch.arange(n), (x + 1) / 2, torch.arange(n) % 10)


class Around(Gaussian):
    """`Gaussian` with a parameter, which tells the device."""

    def __init__(self):
        super().__init__(0.0, STD)
        self.here = nn.Parameter(torch.zeros(1))


def distilling(model: Denoiser, levels: int = 400, decay: float = 0.9) -> Distillation:
    given = {"levels": levels, "high": 3.0, "rho": 7.0, "target_decay": decay}
    return Distillation(model, gaussian_data(64), teacher=Around(), classifier=classifier(1), **given)


def test_the_end_of_the_flow_has_no_loss_and_the_posterior_mean_has_one():
    """f(z, s) = sqrt(STD^2 + s_min^2) / sqrt(STD^2 + s^2) z is the consistency function of Gaussian data."""
    end = Consistency(Linear(lambda s: factor(s, torch.full_like(s, 0.002))), clock=1.0)
    mean = Consistency(Linear(lambda s: STD**2 / (STD**2 + s**2)), clock=1.0)
    s = torch.full((2, 1, 1, 1), 0.7)
    z = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(end(z, s), factor(s, torch.tensor(0.002)) * z)
    torch.testing.assert_close(mean(z, s), Gaussian(0.0, STD)(z, 0.7))
    losses = []
    for model in (end, mean):
        task = distilling(model)
        losses.append(task.loss(*task.draw(512, torch.Generator().manual_seed(0))).item())
    assert losses[0] < 1e-9
    assert losses[1] > 1e3 * losses[0]


def test_the_target_is_an_average_of_the_steps():
    task = distilling(Consistency(Linear(lambda s: s)), decay=0.75)
    expected = 0.0
    for step, value in enumerate((1.0, -2.0, 5.0), 1):
        task.net.unused.data.fill_(value)
        task.after_step(step)
        expected = 0.75 * expected + 0.25 * value
    assert task.target.net.unused.item() == pytest.approx(expected)
    saved = {k: v.clone() for k, v in task.state()["target"].items()}
    other = distilling(Consistency(Linear(lambda s: s)))
    other.restore({"target": saved})
    assert other.target.net.unused.item() == pytest.approx(expected)


def test_levels_are_equally_spaced_in_the_seventh_root():
    levels = karras_levels(0.002, 80.0, 18, 7.0)
    roots = levels ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(17))
    assert [levels[0].item(), levels[-1].item()] == pytest.approx([80, 0.002])
    with pytest.raises(ValueError, match="need 0 < low < high"):
        karras_levels(0.0, 1.0, 4, 7.0)


def test_the_perceptual_loss_is_that_of_unit_features():
    """By hand: features of unit length at each pixel, squared differences summed over channels, means over pixels and
    over two taps.
    """
    model = Consistency(SmallUNet(channels=1, width=8, wide=8, emb=8), sigma_data=0.75, clock=0.25)
    judge, data = classifier(1), gaussian_data(16)
    data = data._replace(x=data.x.clamp(0, 1))
    task = PerceptualTuning(model, data, teacher=Around(), classifier=judge, sigmas=[0.5, 2.0])
    x, n, index = task.draw(6, torch.Generator().manual_seed(0))
    assert set(index.tolist()) <= {0, 1}
    total = 0.0
    for i in range(6):
        s = (0.5, 2.0)[index[i]]
        result = model(x[i : i + 1] + s * n[i : i + 1], s)
        for ours, truth in zip(judge.features((result + 1) / 2), judge.features((x[i : i + 1] + 1) / 2), strict=True):
            a, b = (nn.functional.normalize(f, dim=1) for f in (ours, truth))
            total += ((a - b) ** 2).sum(dim=1).mean().item() / 2
    assert task.loss(x, n, index).item() == pytest.approx(total / 6, rel=1e-4)


def test_the_judge_sets_the_model_beside_the_posterior_mean(tmp_path, capsys):
    """For Gaussian data the mean's squared error is STD^2 s^2 / (STD^2 + s^2), and that of the flow's end
    2 STD^2 (1 - STD / sqrt(STD^2 + s^2)).
    """
    task = distilling(Consistency(Linear(lambda s: factor(s, torch.zeros_like(s))), clock=1.0), levels=4)
    task.denoiser.eval().requires_grad_(False)
    test = gaussian_data(512)
    figures = task.judge(test, tmp_path, seed=0)
    names, *rows = [line.split(",") for line in (tmp_path / "judge.csv").read_text().splitlines()]
    assert names == [
        *("sigma", "posterior_mean_error", "posterior_mean_accuracy", "posterior_mean_perceptual"),
        *("error", "accuracy", "perceptual"),
    ]
    for row, sigma in zip(rows, consistency.SIGMAS, strict=True):
        found = dict(zip(names, map(float, row), strict=True))
        total = STD**2 + sigma**2
        assert found["sigma"] == pytest.approx(sigma)
        assert found["posterior_mean_error"] == pytest.approx(STD**2 * sigma**2 / total, rel=0.02)
        assert found["error"] == pytest.approx(2 * STD**2 * (1 - STD / math.sqrt(total)), rel=0.02)
        assert figures[f"error/sigma={sigma:g}"] == pytest.approx(found["error"], rel=1e-4)
    assert (tmp_path / "denoised.png").stat().st_size > 1000
    assert "consistency: accuracy on 512 noisy test images" in capsys.readouterr().out.replace("\n", " ")


def test_wrong_settings_are_one_sentence():
    with pytest.raises(ValueError, match="need a Consistency adapter to train in, got EDM"):
        distilling(EDM(SmallUNet(channels=1)))
    with pytest.raises(ValueError, match="need 0 <= target_decay <= 1, got target_decay=2"):
        distilling(Consistency(SmallUNet(channels=1)), decay=2.0)
    with pytest.raises(ValueError, match="need sigmas > 0"):
        PerceptualTuning(
            Consistency(SmallUNet(channels=1)), gaussian_data(4), teacher=Around(), classifier=classifier(1), sigmas=[]
        )


def test_images_are_those_of_the_data():
    task = distilling(Consistency(SmallUNet(channels=1)))
    x, n, index = task.draw(200, torch.Generator().manual_seed(0))
    found = (x[:, None] == to_pm1(gaussian_data(64).x)[None]).flatten(2).all(2)
    assert found.any(1).all()
    assert n.std().item() == pytest.approx(1, abs=0.02)
    assert {int(index.min()), int(index.max())} <= set(range(399))
