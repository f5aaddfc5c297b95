"""The contracts of classifiers, denoisers, threat models and datasets find planted faults and name their cause."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dp.classifiers import Classifier
from dp.contracts import dataset, networks, threat_model
from dp.contracts.failure import Failure
from dp.diffusion.denoisers import Denoiser
from dp.subset import Subset
from dp.threat_models.ball import ThreatModel


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def assert_sentence(found: list[Failure], name: str, *words: str) -> None:
    assert [failure.name for failure in found] == [name]
    for word in words:
        assert word in found[0].sentence
    assert "tensor(" not in found[0].sentence
    assert "\n" not in found[0].sentence


@dataclass
class Fault:
    """A classifier's network or a denoiser with this fault, by name; `sound` has none."""

    name: str

    def of(self, x):
        match self.name:
            case "dropout":
                return nn.functional.dropout(x, training=True)
            case "mean":
                return x - x.mean()
            case "detach":
                return x.detach()
            case "round":
                return x.round()
            case "nan":
                return x / 0
            case "size":
                return x * (1 + 0.01 * (len(x) < 4))
            case "twice":
                return torch.cat([x, x])
        return x


class Net(nn.Module):
    def __init__(self, fault: str):
        super().__init__()
        self.fault = Fault(fault)
        self.linear = nn.Linear(64, 3)
        nn.init.constant_(self.linear.weight, 0.1)

    def forward(self, x):
        return self.linear(self.fault.of(x).flatten(1))


class Plain(Denoiser):
    """The posterior mean of Gaussian data, with a fault."""

    def __init__(self, fault: str):
        super().__init__(nn.Identity())
        self.fault = Fault(fault)

    def denoise(self, z, sigma):
        sigma = 0.5 if self.fault.name == "scale" else sigma
        return self.fault.of(z) * (0.25 / (0.25 + sigma**2))


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("dropout", "determinism", ("dropout", "evaluation mode", "of all values")),
        ("mean", "batch mates", ("only its batch mates", "mean")),
        ("size", "batch size", ("the size of its batch",)),
        ("detach", "gradient", ("no graph back to x", "detach()")),
        ("round", "gradient", ("zero for 4 of 4 images", "rounding")),
        ("nan", "finite", ("100 % of them",)),
        ("twice", "shape", ("(8, 3) torch.float32 for (4, 1, 8, 8)",)),
    ],
)
def test_a_faulty_classifier(fault, name, words):
    assert_sentence(networks.of_classifier(Classifier(Net(fault)), images(), torch.arange(3)), name, *words)


def test_a_classifier_that_is_not_frozen_or_lacks_classes():
    classifier = Classifier(Net("sound"))
    assert networks.of_classifier(classifier, images(), torch.arange(3)) == []
    assert_sentence(networks.of_classifier(classifier, images(), torch.tensor([3])), "labels", "3 logits", "up to 3")
    classifier.net.requires_grad_(True)
    assert_sentence(networks.of_classifier(classifier, images(), None), "frozen", "net.linear.weight")
    classifier.net.requires_grad_(False).train()
    assert_sentence(networks.of_classifier(classifier, images(), None), "frozen", "eval()")


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("dropout", "determinism", ("dropout",)),
        ("mean", "batch mates", ("only its batch mates",)),
        ("size", "batch size", ("the size of its batch",)),
        ("nan", "finite", ("x0 at sigma 0.1",)),
        ("twice", "shape", ("at sigma 0.1", "(8, 1, 8, 8)")),
        ("scale", "low noise", ("at sigma .02", "another scale of sigma")),
    ],
)
def test_a_faulty_denoiser(fault, name, words):
    assert_sentence(networks.of_denoiser(Plain(fault), 2 * images() - 1), name, *words)
    assert networks.of_denoiser(Plain("sound"), 2 * images() - 1) == []


@dataclass(frozen=True)
class Ball(ThreatModel):
    fault: str = ""

    def project(self, x_adv, x):
        match self.fault:
            case "wide":
                return (x + (x_adv - x).clamp(-2 * self.eps, 2 * self.eps)).clamp(0, 1)
            case "no box":
                return x + (x_adv - x).clamp(-self.eps, self.eps)
            case "moves":
                return super().project(x_adv + 1e-3, x)
        return super().project(x_adv, x)

    def random_start(self, x, rng):
        if self.fault == "torch.rand":
            return self.project(x + self.eps * (2 * torch.rand_like(x) - 1), x)
        if self.fault == "seeded":
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
            return self.project(x + self.eps * (2 * noise - 1), x)
        return x if self.fault == "clean" else super().random_start(x, rng)

    def noise(self, x, rng):
        return super().random_start(x, rng)

    def distance(self, x_adv, x):
        distance = super().distance(x_adv, x)
        return distance.float() if self.fault == "single precision" else distance


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("wide", "projection", ("a projected point is 0.1 away (need 0.05)",)),
        ("no box", "range", ("need [0, 1]", "the box")),
        ("torch.rand", "determinism", ("the same streams", "rng.uniform_like")),
        ("seeded", "order", ("the place in the batch",)),
        ("clean", "moves", ("random_start leaves 4 of 4 images unchanged",)),
        ("single precision", "distance", ("torch.float32", "float64")),
    ],
)
def test_a_faulty_threat_model(fault, name, words):
    found = threat_model.failures(Ball("linf", 0.05, fault=fault), images(), torch.arange(4))
    assert_sentence(found, name, *words)


def test_a_projection_that_moves_what_is_feasible():
    found = threat_model.failures(Ball("linf", 0.05, fault="moves"), images(), torch.arange(4))
    assert {"clean", "projection", "feasible"} <= {failure.name for failure in found}
    assert threat_model.failures(Ball("linf", 0.05), images(), torch.arange(4)) == []


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"x": images() * 255}, "range", ("not scaled to [0, 1]",)),
        ({"x": images() / 255}, "range", ("divided by 255 twice",)),
        ({"x": images().double()}, "types", ("torch.float64", "float32")),
        ({"x": images()[:3]}, "shape", ("(3, 1, 8, 8) for 4 images",)),
        ({"x": images().permute(0, 2, 3, 1)}, "shape", ("(4, 8, 8, 1)", "C = 1 or 3")),
        ({"y": torch.arange(3)}, "shape", ("y is (3,)",)),
        ({"ids": torch.tensor([5, 6, 6, 8])}, "ids", ("1 ids stand twice",)),
        ({"y": torch.tensor([-1, 0, 1, 2])}, "labels", ("a label is -1",)),
    ],
)
def test_a_faulty_dataset(changes, name, words):
    sound = Subset(torch.arange(4), images(), torch.arange(4))
    faulty = sound._replace(**changes)
    assert_sentence(dataset.failures(faulty, faulty, images=4), name, *words)
    assert dataset.failures(sound, sound, images=4) == []


def test_a_dataset_of_other_images_every_time():
    first, second = (Subset(torch.arange(4), images(seed), torch.arange(4)) for seed in (0, 1))
    assert_sentence(dataset.failures(first, second, images=4), "determinism", "other x", "fixed subset")
