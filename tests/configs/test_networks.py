"""What every network of `configs/network` keeps, in two and three dimensions.

A new file is found by itself; its `channels` are divided by SHRUNK, and SMALL has what they leave. What takes
longer is in `tests/networks/test_contract.py`, a part of `make test-networks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from scripts.errors import InputError, root_cause
from scripts.networks.heads import MAIN_HEAD, main_logits
from scripts.networks.sizes import Sizes
from tests.commands import CONFIGS

pytestmark = pytest.mark.workflow

NETWORKS = sorted(file.stem for file in (CONFIGS / "network").glob("*.json"))

#: By how much `channels` are divided here, and the least that is left of each.
SHRUNK, LEAST = 16, 4

#: Ids that make a small network of an overlay whose `channels` do not: for any dimension, or under "2" and
#: "3" for one.
SMALL: dict[str, dict[str, Any]] = {
    "mednext": {"network_def::init_filters": 4},
    "pretrained_efficientnet": {
        **{"channels": [16, 24, 40, 112, 320]},
        **{"2": {"patch_size": [64, 32]}, "3": {"patch_size": [64, 32, 32]}},
    },
    "pretrained_resnet": {"2": {"patch_size": [64, 32]}, "3": {"patch_size": [64, 32, 32]}},
    "resenc": {"channels": [4, 6, 8]},
    "punet": {"channels": [8, 8, 8]},  # six scans a block in 3D
    "dcsau": {"channels": [8, 16, 16], "decoder_channels": [8, 16]},
    "fcdensenet": {"channels": [[4, 4], [4, 4], [4, 4, 4]], "decoder_channels": [[4, 4], [4, 4]]},
    "segresnet": {"network_def::init_filters": 8},
    "swinunetr": {
        "network_def::feature_size": 12,
        "2": {"patch_size": [64, 32]},
        "3": {"patch_size": [64, 32, 32]},
    },
    "transunet": {
        **{"network_def::bottleneck::hidden_size": 24, "network_def::bottleneck::mlp_dim": 48},
        **{"network_def::bottleneck::num_layers": 2, "network_def::bottleneck::out_channels": 32},
        **{"network_def::encoder::blocks": [1, 1, 1]},
        **{"2": {"patch_size": [64, 64]}, "3": {"patch_size": [64, 32, 32]}},
    },
    "unetr": {"network_def::feature_size": 4, "network_def::hidden_size": 48, "network_def::mlp_dim": 96},
    "unet2015": {"channels": [4, 8, 8]},
    "unet3d2016": {"channels": [[2, 4], [4, 8], [8, 8]]},
}

#: Overlays for one number of axes alone.
ONLY: dict[str, int] = {"star_convex": 2}

#: Overlays of networks whose dropout has another name.
WITHOUT_DROPOUT: set[str] = set()

#: Parameters as published: overlay, axes, channels in, channels out, further ids, parameters.
PUBLISHED: list[tuple[str, int, int, int, dict[str, Any], int]] = [
    ("attention", 3, 1, 2, {}, 6_472_784),
    ("attention", 3, 1, 4, {}, 6_473_322),
    ("attention", 3, 1, 2, {"network_def::merge::gates": 1}, 6_213_613),
    ("attention", 3, 1, 4, {"network_def::merge::gates": 1}, 6_214_151),
    ("mss", 3, 1, 3, {}, 29_659_280),
    ("recurrent", 2, 3, 1, {"network_def::block::shared": True}, 39_091_393),
    ("resenc", 3, 1, 2, {}, 102_349_770),
    ("unet2015", 2, 1, 2, {}, 31_030_658),
    ("unet3d2016", 3, 3, 3, {}, 19_069_955),
    ("swinunetr", 3, 1, 14, {}, 62_187_296),
    ("transunet", 2, 3, 9, {"patch_size": [224, 224]}, 105_277_081),
    ("vnet", 3, 1, 2, {}, 61_982_682),
    ("dcsau", 2, 3, 1, {}, 2_598_785),
    ("dual_decoder", 2, 3, 3, {}, 3_555_666),
    ("fcdensenet", 2, 3, 11, {}, 9_322_091),
    ("inception", 2, 3, 1, {}, 3_902_519 - 12),  # without the norm on the image
    ("unetplusplus", 2, 1, 1, {}, 9_041_700),
    ("punet", 2, 3, 2, {}, 291_898),  # as counted here: the paper says 0.26 M
]

#: Norms that in training see the batch and in evaluation what they kept.
KEEPING = nn.modules.batchnorm._BatchNorm


@dataclass
class Case:
    """A small network of an overlay, whose weights are drawn, and an image that it takes."""

    name: str
    dims: int
    network: nn.Module
    size: tuple[int, ...]

    def image(self, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randn((batch, 1, *self.size), generator=generator)


def small_ids(name: str, dims: int) -> dict[str, Any]:
    """Ids on top of an overlay that make its network small: 1 channel in and 3 classes out."""
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files_of(name)]))
    given: dict[str, Any] = {"spatial_dims": dims, "in_channels": 1, "out_channels": 3}
    given |= {"patch_size": [32] * dims, "channels": shrunk(parser["channels"])}
    given |= {} if name in WITHOUT_DROPOUT else {"network_def::dropout": 0.0}
    own = SMALL.get(name, {})
    both = {key: value for key, value in own.items() if key not in ("2", "3")}
    return {**given, **both, **own.get(str(dims), {})}


def files_of(name: str) -> list[Path]:
    """The configs of a training with the network of an overlay."""
    return [CONFIGS / "train.json", CONFIGS / "network" / f"{name}.json"]


def build(name: str, dims: int, **ids: Any) -> ConfigParser:
    """The configs of a training with a small network of an overlay."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in files_of(name)])
    for key, value in {**small_ids(name, dims), **ids}.items():
        parser[key] = value
    return parser


def shrunk(channels: Any) -> Any:
    """Channels, as nested as they are, of a network that computes in a moment."""
    if isinstance(channels, int):
        return max(channels // SHRUNK, LEAST)
    return [shrunk(each) for each in channels]


def network_of(parser: ConfigParser) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return parser.get_parsed_content("network_def")


def shaken(network: nn.Module) -> nn.Module:
    """A network none of whose weights is zero or one by design, so that every path counts."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return network


def small(name: str, dims: int) -> Case:
    """The case of an overlay, of the smallest size that its network takes from the patch on."""
    parser = build(name, dims)
    network = shaken(network_of(parser))
    size = Sizes(network)._legal_above(tuple(parser["patch_size"]))
    assert size is not None, "no legal size was found"
    return Case(name, dims, network, size)


CASES = [(name, dims) for name in NETWORKS for dims in (2, 3) if ONLY.get(name, dims) == dims]


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{dims}D" for name, dims in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return small(*request.param)


@pytest.mark.parametrize(("name", "dims", "inside", "outside", "ids", "count"), PUBLISHED)
def test_published_count(
    name: str, dims: int, inside: int, outside: int, ids: dict[str, Any], count: int
) -> None:
    """The overlay alone, with the paper's channels in and out."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in files_of(name)])
    for key, value in {"spatial_dims": dims, "in_channels": inside, "out_channels": outside, **ids}.items():
        parser[key] = value
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert sum(weights.numel() for weights in network.parameters()) == count


@pytest.mark.parametrize("name", sorted(ONLY))
def test_other_dimensions_are_refused(name: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - MONAI wraps it
        network_of(build(name, 5 - ONLY[name]))
    assert isinstance(root_cause(error.value), InputError)


def test_sizes_are_true(case: Case) -> None:
    """What `Sizes` says of a size is what the network does with an image: of a legal one and the next."""
    check_sizes(case, range(case.size[0], case.size[0] + 2))


def check_sizes(case: Case, lengths: range) -> None:
    """Hold `Sizes` against the network, for some lengths of the first axis, one of which is legal."""
    network, sizes = case.network.eval(), Sizes(case.network)
    legal = 0
    for length in lengths:
        size = (length, *case.size[1:])
        image = torch.zeros((1, 1, *size))
        if sizes.is_legal(size):
            legal += 1
            assert tuple(main_logits(network(image)).shape) == (1, 3, *sizes.output(size))
        else:
            with pytest.raises(InputError, match=rf"input size \({length}, .*(nearest legal size|use )"):
                sizes.check(size)
            with pytest.raises((InputError, RuntimeError, ValueError)):
                network(image)
    assert legal


def test_every_parameter_gets_a_gradient(case: Case) -> None:
    network = case.network.train()
    network.zero_grad()
    sum(leaf.square().mean() for leaf in tree_leaves(network(case.image()))).backward()  # type: ignore[union-attr]
    still = [
        name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert still == []
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)


def test_two_instances_share_nothing(case: Case) -> None:
    parser = build(case.name, case.dims)
    twins = network_of(parser), network_of(build(case.name, case.dims))
    tensors = [{x.data_ptr() for x in [*twin.parameters(), *twin.buffers()] if x.numel()} for twin in twins]
    assert not tensors[0] & tensors[1]
    assert not set(map(id, twins[0].modules())) & set(map(id, twins[1].modules()))
    weights = [dict(twin.named_parameters()) for twin in twins]
    assert all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
    )  # one seed, one network


def test_training_and_evaluation_differ_where_they_should_alone(case: Case) -> None:
    """Heads for training, norms that keep statistics, dropout: nothing else."""
    network, image = case.network, case.image()
    with torch.no_grad():
        first, again = (main_logits(network.eval()(image)) for _ in range(2))
        assert torch.equal(first, again)
        if any(isinstance(module, KEEPING) and module.track_running_stats for module in network.modules()):
            for module in network.train().modules():
                if isinstance(module, KEEPING):
                    module.eval()
        else:
            network.train()
        trained = main_logits(network(image))
    assert torch.allclose(trained, first, rtol=1e-4, atol=1e-5 * float(first.abs().max()))


def test_dropout_is_switched_on_by_its_key(case: Case) -> None:
    """MONAI Label sets the key and calls `train()` to see how unsure a network is."""
    if case.name in WITHOUT_DROPOUT:
        pytest.skip("its dropout has another name")
    network = network_of(build(case.name, case.dims, **{"network_def::dropout": 0.5})).train()
    with torch.no_grad():
        first, again = (main_logits(network(case.image())) for _ in range(2))
    assert not torch.equal(first, again)


def test_weights_come_back(case: Case) -> None:
    other = network_of(build(case.name, case.dims)).eval()
    other.load_state_dict(case.network.state_dict(), strict=True)
    with torch.no_grad():
        image = case.image(1)
        assert torch.equal(main_logits(other(image)), main_logits(case.network.eval()(image)))


def test_heads_have_names(case: Case) -> None:
    network = case.network.train()
    with torch.no_grad():
        output = network(case.image())
    if not isinstance(output, Tensor):
        assert MAIN_HEAD in output
        assert all(isinstance(logits, Tensor) and logits.ndim == case.dims + 2 for logits in output.values())
    assert tuple(main_logits(output).shape[:2]) == (2, 3)
