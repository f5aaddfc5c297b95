"""The classifier's preprocessing, its attention taps and what it leaves behind."""

import numpy as np
import pytest
import torch
from torch import nn

from dp.classifiers import Classifier
from dp.contracts import networks
from dp.nets.wrn import WideResNet
from dp.precision import cast
from dp.runs.build import defense
from tests.helpers.compose import composed, images_of, loadable, on_its_dataset
from tests.helpers.contract import assert_held, in_one_line

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
TAPS = ["block1.layer.0.relu2", "block2.layer.0.relu2", "block3.layer.0.relu2", "relu"]


@pytest.mark.parametrize("name", loadable("classifier"))
def test_contract(name, record_property):
    """Logits of every image, with a gradient, from a frozen network without noise; a label has a logit of its own."""
    config = composed(*on_its_dataset("classifier", name))
    with in_one_line(f"classifier {name}"):
        classifier = defense(config, "cpu").classifier
    assert_held(networks.of_classifier(classifier, *images_of(name)), "classifier", config, record_property)


class Recorder(nn.Module):
    """Keeps its input; the mean of each channel is its logit."""

    def forward(self, x):
        self.seen = x
        return x.mean(dim=(2, 3))


class Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken net")


def wrn(channels=3):
    torch.manual_seed(0)
    net = WideResNet(depth=10, widen=1, classes=10, channels=channels)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return net


def images(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape or (2, 3, 8, 8), generator=generator, dtype=torch.float64).to(dtype)


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_mean_and_std_are_applied_once_and_per_channel():
    classifier, x = Classifier(Recorder(), mean=MEAN, std=STD), images()
    logits = classifier(x)
    expected = np.stack([(x[:, c].numpy() - MEAN[c]) / STD[c] for c in range(3)], axis=1)
    np.testing.assert_allclose(classifier.net.seen.numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits.numpy(), expected.mean(axis=(2, 3)), rtol=0, atol=1e-6)


def test_without_mean_and_size_the_net_sees_the_image_itself():
    classifier, x = Classifier(Recorder()), images()
    classifier(x)
    assert torch.equal(classifier.net.seen, x)


def resized(row, n):
    """Linear interpolation at half-pixel centers, ends repeated."""
    at = (np.arange(n) + 0.5) * len(row) / n - 0.5
    return np.interp(at, np.arange(len(row)), row)


@pytest.mark.parametrize("size", [5, 8, 12, 16])
def test_resize_is_bilinear_and_comes_before_mean_and_std(size):
    x = images(2, 3, 8, 8, dtype=torch.float64)
    classifier = Classifier(Recorder(), mean=MEAN, std=STD, size=size)
    classifier(x)
    expected = np.apply_along_axis(resized, 3, np.apply_along_axis(resized, 2, x.numpy(), size), size)
    expected = (expected - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(classifier.net.seen.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"mean": MEAN}, {"std": STD}])
def test_mean_and_std_come_together(settings):
    with pytest.raises(ValueError, match="need mean and std together"):
        Classifier(Recorder(), **settings)


def test_unknown_taps_are_named():
    with pytest.raises(ValueError, match=r"need taps that are modules of WideResNet, got \['block4', 'relu3'\]"):
        Classifier(wrn(), taps=["block1", "block4", "relu3"])


def test_features_without_taps():
    with pytest.raises(ValueError, match="need taps"):
        Classifier(wrn()).features(images())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0], [2], [1, 3, 0, 2]])
def test_features_come_in_the_order_of_the_taps(order):
    found = Classifier(wrn(), taps=[TAPS[i] for i in order]).features(images(2, 3, 32, 32))
    shapes = [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8), (2, 64, 8, 8)]
    assert [tuple(f.shape) for f in found] == [shapes[i] for i in order]


def test_features_are_the_modules_outputs_on_the_preprocessed_image():
    net = wrn().eval()
    classifier, x = Classifier(net, taps=["block1", "relu"], mean=MEAN, std=STD, size=16), images(2, 3, 8, 8)
    found = classifier.features(x)
    with torch.no_grad():
        recorder = Classifier(Recorder(), mean=MEAN, std=STD, size=16)
        recorder(x)
        one = net.block1(net.conv1(recorder.net.seen))
        last = torch.relu(net.bn1(net.block3(net.block2(one))))
        logits = net.fc(last.mean(dim=(2, 3)))
    torch.testing.assert_close(found, [one, last])
    torch.testing.assert_close(classifier(x), logits)


def test_features_keep_their_graph():
    x = images(1, 3, 8, 8).requires_grad_(True)
    (g,) = torch.autograd.grad(Classifier(wrn(), taps=TAPS).features(x)[-1].sum(), x)
    assert g.abs().sum() > 0


def test_hooks_live_for_one_call():
    classifier, x = Classifier(wrn(), taps=TAPS), images()
    before, logits = hooks(classifier), classifier(x)
    for _ in range(3):
        classifier.features(x)
    assert hooks(classifier) == before == 0
    assert torch.equal(classifier(x), logits)


def test_hooks_are_removed_after_an_exception():
    net = nn.Sequential(nn.ReLU(), Breaks())
    classifier = Classifier(net, taps=["0", "1"])
    with pytest.raises(RuntimeError, match="broken net"):
        classifier.features(images())
    assert hooks(classifier) == 0


def test_the_net_is_frozen_and_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10)).train()
    classifier, x = Classifier(net), images()
    assert torch.equal(classifier(x), classifier(x))
    assert not any(p.requires_grad for p in classifier.parameters())


def test_bfloat16_is_for_the_net_alone():
    x = images(2, 3, 16, 16).requires_grad_(True)
    exact = Classifier(wrn(), taps=TAPS, mean=MEAN, std=STD)(x)
    classifier = Classifier(wrn(), taps=TAPS, mean=MEAN, std=STD)
    cast(classifier.net, torch.bfloat16)
    low = classifier(x)
    assert low.dtype == torch.float32
    assert torch.autograd.grad(low.sum(), x)[0].dtype == torch.float32
    assert {f.dtype for f in classifier.features(x)} == {torch.float32}
    assert 0 < (low - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_double_model_stays_double():
    x = images(2, 3, 16, 16, dtype=torch.float64)
    low, narrow = Classifier(wrn(), mean=MEAN, std=STD), wrn()
    cast(low.net, torch.bfloat16)
    for p in narrow.parameters():
        if p.ndim == 4:
            p.data = p.data.bfloat16().float()
    narrow.fc.weight.data, narrow.fc.bias.data = (p.bfloat16().float() for p in (narrow.fc.weight, narrow.fc.bias))
    assert low.double()(x).dtype == torch.float64  # the weights are rounded, and nothing else
    assert torch.equal(low(x), Classifier(narrow.double(), mean=MEAN, std=STD).double()(x))


def test_mean_and_std_are_no_trainable_weights_but_move_with_the_model():
    classifier = Classifier(Recorder(), mean=MEAN, std=STD)
    assert not list(classifier.parameters())
    assert classifier.to(torch.float64)(images(dtype=torch.float64)).dtype == torch.float64


def test_features_before_a_module_that_works_in_place():
    """bn1's own output, not what the ReLU behind it leaves there."""
    net = WideResNet(10, 1).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (tapped,) = Classifier(net, taps=["bn1"]).features(x)
    torch.testing.assert_close(tapped, net.bn1(net.block3(net.block2(net.block1(net.conv1(x))))))
    assert tapped.min() < 0
