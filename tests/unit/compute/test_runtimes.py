"""Every runtime gives the logits that the network gives, and goes on giving them when the network changes."""

from __future__ import annotations

import copy
import functools
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus, DynUNet, SegResNet
from torch import nn

from scripts.compute import runtimes
from scripts.compute.acceleration import accelerate, can_compile, mixed_precision
from scripts.compute.runtimes import Runtime, agreement, narrows
from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.blocks import InterpolatedUp, ResidualBlock
from scripts.networks.heads import Heads
from tests.commands import ROOT

CPU = torch.device("cpu")

# Single precision through a few layers, summed in another order.
TOLERANCE = 1e-4

needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
OPENVINO = pytest.param("openvino", marks=needs_openvino)

#: Heads with one more, on the level below the highest.
DEEP = partial(Heads, deep_supervision=1)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain 2D": lambda: UNet(2, 1, 3, [4, 8], dropout=0.5),
    "plain 3D": lambda: UNet(3, 1, 3, [4, 8, 8], strides=[[1, 2, 2], 2], heads=DEEP),
    "residual": lambda: UNet(3, 1, 3, [4, 8], block=ResidualBlock, up=InterpolatedUp, down=None),
    "valid": lambda: UNet(3, 1, 3, [4, 8], padding="valid", norm=("batch", {"affine": False})),
    "SegResNet": lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)),
    "DynUNet": lambda: DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], [4, 8, 8], deep_supervision=True),
}


@functools.cache
def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def make_tile(name: str, batch: int = 1) -> torch.Tensor:
    sizes = {"plain 2D": (16, 24), "valid": (20, 20, 20)}
    return torch.rand((batch, 1, *sizes.get(name, (16, 8, 12))), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


def logits_of(network: nn.Module, tile: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(tile)


def check_conversion(runtime: str, name: str) -> None:
    network, run = make_network(name), Runtime(runtime)
    for batch in (1, 2, 1):
        tile = make_tile(name, batch)
        assert_same(run(network, tile), logits_of(network, tile))


@needs_openvino
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_gives_the_networks_logits(name):
    check_conversion("openvino", name)


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="onnxruntime is not installed")
@pytest.mark.parametrize("name", ["plain 3D", "SegResNet"])
def test_onnxruntime_gives_the_networks_logits(name):
    check_conversion("onnxruntime", name)


#: In a process of its own, as compiling starts others.
COMPILED = """
import torch
from torch import nn
from scripts.compute.runtimes import Runtime

network, run = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), Runtime("compile")
tile = torch.rand(1, 1, 16, 24)
for _ in range(2):
    with torch.no_grad():
        torch.testing.assert_close(run(network, tile), network(tile), atol=1e-4, rtol=1e-4)
    network[0].bias.data += 1  # a compiled network reads its weights anew
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


@pytest.mark.long
@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
def test_compiled_network_gives_the_networks_logits():
    subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, check=True)


#: In a process of its own, as what goes wrong ends the process. The workers of data loaders make torch
#: install a handler of this signal, which runs on the stack that faulthandler, OpenVINO and others set aside.
SIGNALLED = """
import faulthandler, signal, subprocess
import torch
from torch import nn
from scripts.compute.runtimes import Runtime

faulthandler.enable()
handled = []
signal.signal(signal.SIGCHLD, lambda *_: handled.append(True))
runs = [Runtime("openvino"), Runtime("openvino")]
for run in runs:
    run(nn.Conv2d(1, 2, 3).eval(), torch.rand(1, 1, 8, 8))
del runs[0], run  # the older one first
del runs
subprocess.run(["true"], check=True)
assert handled
"""


@pytest.mark.long
@needs_openvino
@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets a stack aside on Linux alone")
def test_signals_find_a_stack_after_openvino():
    subprocess.run([sys.executable, "-c", SIGNALLED], cwd=ROOT, check=True)


#: A transformer between encoder and decoder, which OpenVINO 2026.4 crashed on in float32.
ATTENTIVE = """
import torch
from bundle.runs.experiments import parser_of
from scripts.compute.runtimes import Runtime

small = {"hidden_size": 24, "mlp_dim": 48, "num_layers": 2}
config = {
    "config_file": ["configs/train.json", "configs/network/transunet.json"],
    **{"patch_size": [32, 32, 32], "channels": [4, 8, 8, 8], "decoder_channels": [4, 8, 8]},
    **{f"network_def::bottleneck::{name}": value for name, value in small.items()},
}
network, tile = parser_of(config).get_parsed_content("network_def").eval(), torch.randn(1, 1, 32, 32, 32)
with torch.no_grad():
    torch.testing.assert_close(Runtime("openvino")(network, tile), network(tile), atol=1e-3, rtol=1e-3)
"""


@needs_openvino
def test_attention_is_computed_in_float32():
    subprocess.run([sys.executable, "-W", "ignore", "-c", ATTENTIVE], cwd=ROOT, check=True)


@pytest.mark.parametrize("runtime", ["torch", OPENVINO])
def test_conversion_follows_the_weights(runtime):
    """An optimizer's step and loaded weights change them in place, or put others there."""
    torch.manual_seed(0)
    network, run, tile = UNet(2, 1, 2, [2, 4]).eval(), Runtime(runtime), make_tile("plain 2D")
    before = run(network, tile)
    others = [UNet(2, 1, 2, [2, 4]).eval() for _ in range(3)]
    for change in (
        lambda: torch.optim.SGD([network.heads.main.bias], lr=1.0).step(),
        lambda: network.load_state_dict(others[0].state_dict()),
        lambda: network.load_state_dict(others[1].state_dict(), assign=True),
        lambda: network.heads.register_module("main", others[2].heads.main),
    ):
        network.heads.main.bias.grad = torch.ones(2)
        change()
        after = run(network, tile)
        assert (after - before).abs().max() > 0.1
        assert_same(after, logits_of(network, tile))
        before = after


class Narrow(nn.Module):
    """Two strides, and a head that sees what the last one leaves."""

    def __init__(self) -> None:
        super().__init__()
        steps = [nn.Conv2d(1, 112, 3, stride=2, padding=1), nn.Conv2d(112, 240, 3, stride=2, padding=1)]
        self.layers = nn.Sequential(*steps, nn.Conv2d(240, 2, 1))

    def forward(self, x):
        return self.layers(x)


@needs_openvino
@pytest.mark.parametrize(("size", "said"), [((32, 4), True), ((4, 32), False), ((32, 8), False)])
def test_a_stride_to_one_voxel_along_the_last_axis_is_computed_in_single_precision(
    size, said, caplog, monkeypatch
):
    """With AMX such a map was any number in bfloat16."""
    monkeypatch.setattr(runtimes, "mixed_precision", lambda device: torch.bfloat16)
    monkeypatch.setattr(runtimes, "has_amx", lambda: True)
    torch.manual_seed(0)
    network, tile = Narrow().eval(), torch.randn(1, 1, *size)
    with caplog.at_level("INFO"), torch.no_grad():
        found, expected = Runtime("openvino", amp=True)(network, tile), network(tile)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert ("one voxel along an axis: in float32" in caplog.text) is said


@pytest.mark.parametrize("amx", [True, False])
def test_only_amx_minds_one_voxel(monkeypatch, amx):
    monkeypatch.setattr(runtimes, "has_amx", lambda: amx)
    assert narrows(Narrow(), (1, 1, 32, 4)) is amx


@needs_openvino
def test_tiles_side_by_side_are_those_of_one_thread(one_thread):
    """Bit by bit: each thread computes a tile of its own."""
    network, tiles = make_network("plain 3D"), make_tile("plain 3D", 3)
    alone = [Runtime("openvino")(network, tile[None]) for tile in tiles]
    torch.set_num_threads(2)
    together = Runtime("openvino")(network, tiles)
    assert torch.equal(together, torch.cat(alone))
    assert_same(together, logits_of(network, tiles))


@needs_openvino
def test_small_tiles_go_side_by_side(one_thread):
    network = make_network("plain 3D")
    torch.set_num_threads(4)
    abreast = Runtime("auto").abreast
    assert [abreast(network, (64, 64, 64), count) for count in (1, 2, 3, 4, 9)] == [1, 1, 3, 4, 4]
    assert abreast(network, (64, 64, 65), 9) == 1
    assert Runtime("torch").abreast(network, (8, 8, 8), 9) == 1


@needs_openvino
def test_network_is_converted_once(monkeypatch):
    converted = []
    convert = runtimes._openvino
    monkeypatch.setitem(runtimes._CONVERTERS, "openvino", lambda *a: converted.append(1) or convert(*a))
    run = Runtime("openvino")
    for _ in range(3):
        run(make_network("plain 2D"), make_tile("plain 2D"))
    assert len(converted) == 1


@needs_openvino
def test_accelerated_network_is_converted_as_its_class_computes_it():
    """Its own mixed precision must not end up in a conversion to float32."""
    torch.manual_seed(0)
    network = UNet(2, 1, 3, [4, 8]).eval()
    tile = make_tile("plain 2D")
    expected = logits_of(network, tile)
    accelerate(network, CPU, amp=True, memory_format="channels_last")
    assert_same(Runtime("openvino")(network, tile), expected)


@pytest.mark.parametrize("runtime", ["torch", "auto", OPENVINO])
def test_mixed_precision_is_close(runtime):
    network, tile = make_network("plain 3D"), make_tile("plain 3D", 2)
    logits = Runtime(runtime, amp=True)(network, tile)
    assert logits.dtype == torch.float32
    expected = logits_of(network, tile)
    assert (logits.argmax(1) == expected.argmax(1)).double().mean() > 0.97
    assert (logits.softmax(1) - expected.softmax(1)).abs().mean() < 0.01
    if mixed_precision(CPU) and runtime == "torch":
        assert not torch.equal(logits, logits_of(network, tile))


def test_dropout_stays_on_in_training_mode_whatever_the_runtime():
    network = nn.Dropout(0.5)
    for runtime in ("torch", "auto"):
        assert (Runtime(runtime)(network.train(), torch.ones(1, 1, 99)) == 0).any()


def test_main_head_counts():
    network = make_network("plain 3D")
    with torch.no_grad():
        heads = network.train()(make_tile("plain 3D"))
    assert list(heads) == ["main", "deep1"]
    assert torch.equal(Runtime()(network, make_tile("plain 3D")), heads["main"])
    network.eval()


def test_list_is_refused():
    network = BasicUNetPlusPlus(2, 1, 2, features=(2, 2, 2, 2, 2, 2)).eval()
    with pytest.raises(InputError, match="the network gives a list: it must give logits, or a dictionary"):
        Runtime()(network, torch.rand(1, 1, 32, 32))


def test_no_gradients():
    assert not Runtime()(make_network("plain 2D"), make_tile("plain 2D")).requires_grad


def test_auto_leaves_out_what_fails_or_disagrees(monkeypatch, caplog):
    """Candidates that raise or compute something else are logged, and what remains is right."""

    def fail(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(runtimes, "find_spec", lambda name: True)
    monkeypatch.setattr(runtimes, "mixed_precision", lambda device: torch.bfloat16)
    monkeypatch.setitem(runtimes._CONVERTERS, "openvino", fail)
    torch_ = runtimes._torch
    monkeypatch.setitem(
        runtimes._CONVERTERS, "torch", lambda n, t, d: (lambda x: -n(x)) if d else torch_(n, t, d)
    )
    network, run = make_network("plain 2D"), Runtime("auto", amp=True)
    accelerated = accelerate(copy.deepcopy(network), CPU, amp=True, memory_format="channels_last")
    with caplog.at_level(logging.INFO):
        for batch in (1, 2):
            tile = make_tile("plain 2D", batch)
            torch.testing.assert_close(run(accelerated, tile), logits_of(network, tile))
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "runtime: preparing openvino in bfloat16 for tiles of [1, 1, 16, 24]",
        "runtime auto: left out openvino in bfloat16",
        "runtime auto: left out torch in bfloat16",
        "runtime: preparing openvino in float32 for tiles of [1, 1, 16, 24]",
        "runtime auto: left out openvino in float32",
        "runtime auto: took torch in float32",
    ]
    assert "no such operation" in caplog.text


class Threshold(nn.Module):
    """Class c where the image is c: confident logits, known by hand."""

    def forward(self, x):
        return 9 * torch.cat([(x == label).float() for label in range(3)], dim=1)


def make_auto(monkeypatch, candidate):
    """A runtime whose only candidate is a function of the logits, and a list of what it was asked."""
    asked = []
    monkeypatch.setattr(runtimes, "find_spec", lambda name: True)
    monkeypatch.setattr(runtimes, "mixed_precision", lambda device: None)
    monkeypatch.setitem(
        runtimes._CONVERTERS, "openvino", lambda n, t, d: lambda x: asked.append(x) or candidate(n(x))
    )
    return Runtime("auto", amp=True), asked


def tile_of(**voxels):
    """A tile of 40 x 40 pixels of background with some of class 1 and some of class 2."""
    tile = torch.zeros(1, 1, 40, 40)
    tile.view(-1)[: voxels.get("ones", 0)] = 1
    tile.view(-1)[800 : 800 + voxels.get("twos", 0)] = 2
    return tile


def drop_class_2(logits):
    return torch.where(logits.argmax(1, keepdim=True) == 2, logits.flip(1), logits)


def invent_class_2(logits):
    logits[..., 39] = logits[..., 39].flip(1)
    return logits


def test_auto_takes_the_first_that_agrees(monkeypatch, caplog):
    run, _ = make_auto(monkeypatch, lambda logits: logits + 0.001)
    network, tile = Threshold().eval(), tile_of(ones=100, twos=5)
    assert Runtime("torch").is_settled
    assert not run.is_settled
    with caplog.at_level(logging.INFO):
        assert torch.equal(run(network, tile), network(tile))
        assert run.is_settled
        torch.testing.assert_close(run(network, tile), network(tile) + 0.001, rtol=0, atol=1e-5)
    assert "no half precision in hardware" in caplog.records[0].message
    assert "preparing openvino in float32 for tiles of [1, 1, 40, 40]" in caplog.records[1].message
    assert "took openvino in float32 (Dice with float32 from 1.0000" in caplog.records[2].message


@pytest.mark.parametrize("voxels", [1, 8, 400])
def test_candidate_that_drops_a_class_is_refused_whatever_its_share(voxels, monkeypatch, caplog):
    run, _ = make_auto(monkeypatch, drop_class_2)
    network, tile = Threshold().eval(), tile_of(ones=100, twos=voxels)
    for _ in range(2):
        assert torch.equal(run(network, tile), network(tile))
    assert "left out openvino in float32 (Dice with float32 from 0.0000, of class 2" in caplog.text


def test_candidate_that_invents_a_class_is_refused(monkeypatch, caplog):
    run, _ = make_auto(monkeypatch, invent_class_2)
    network, tile = Threshold().eval(), tile_of(ones=39)
    assert torch.equal(run(network, tile), network(tile))
    assert "left out openvino in float32 (Dice with float32 from 0.0000, of class 2" in caplog.text


def test_background_judges_nothing(monkeypatch, caplog):
    """A candidate that finds background alone agrees with every empty tile."""
    run, asked = make_auto(monkeypatch, drop_class_2)
    network = Threshold().eval()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert torch.equal(run(network, tile_of()), network(tile_of()))
        assert not asked
        assert [r.message for r in caplog.records[1:]] == [
            "runtime auto: torch in float32 until a tile shows foreground to judge the others by"
        ]
        for tile in (tile_of(twos=3), tile_of()):
            assert torch.equal(run(network, tile), network(tile))
    assert "left out openvino" in caplog.text


def test_class_that_comes_later_is_judged_too(monkeypatch):
    """The first tile with foreground lacks the class that the candidate drops."""
    run, asked = make_auto(monkeypatch, drop_class_2)
    network = Threshold().eval()
    for tile in (tile_of(ones=100), tile_of(ones=9), tile_of(ones=100, twos=4), tile_of(twos=4)):
        assert torch.equal(run(network, tile), network(tile))
    assert len(asked) == 3


def test_judging_ends_after_a_few_tiles_where_a_class_never_comes(monkeypatch):
    run, _ = make_auto(monkeypatch, lambda logits: logits + 0.001)
    network, tile = Threshold().eval(), tile_of(ones=100)
    exact = [torch.equal(run(network, tile), network(tile)) for _ in range(runtimes.JUDGED_TILES + 2)]
    assert exact == [True] * runtimes.JUDGED_TILES + [False] * 2


def test_no_more_tiles_are_looked_at_than_needed(monkeypatch):
    run, asked = make_auto(monkeypatch, lambda logits: logits + 0.001)
    network, tiles = Threshold().eval(), iter([tile_of(), tile_of(ones=3, twos=3), tile_of(twos=3)])
    for _ in range(2):
        run.look(network, tiles)
    assert len(asked) == 1
    assert len(list(tiles)) == 1
    run.look(network.train(), iter([pytest.fail]))


def test_without_a_compiler_compile_is_torch(monkeypatch, caplog):
    monkeypatch.setattr(runtimes, "can_compile", lambda device: False)
    run = Runtime("compile")
    with caplog.at_level(logging.INFO):
        for name in ("plain 2D", "plain 3D"):
            logits = run(make_network(name), make_tile(name))
            assert torch.equal(logits, logits_of(make_network(name), make_tile(name)))
    assert [record.message for record in caplog.records] == [
        "runtime: no compiler was found; going on with torch"
    ]


def test_agreement_by_hand():
    logits = torch.tensor([[[2.0, 0.0, 0.0, 5.0], [0.0, 1.0, 1.0, 0.0], [-9.0, -9.0, -9.0, -9.0]]])
    other = logits.clone()
    other[0, :, 0] = torch.tensor([0.0, 2.0, -9.0])  # one voxel of four changes sides
    found = agreement(logits, other)
    assert {label: dice for label, (dice, _) in found.items()} == pytest.approx({0: 2 / 3, 1: 4 / 5})
    sigmoid = 1 / (1 + math.exp(-2))
    changed = sigmoid - (1 - sigmoid)  # of two voxels of class 0, of three of class 1
    assert [apart for _, apart in found.values()] == pytest.approx([changed / 2, changed / 3], abs=1e-4)


def test_unknown_runtime_is_refused():
    with pytest.raises(InputError, match="runtime is 'tensorrt': use 'torch', 'compile'"):
        Runtime("tensorrt")


def test_missing_package_names_the_file_that_brings_it(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'openvino'.*not installed.*requirements-runtimes\.txt"):
        Runtime("openvino")
