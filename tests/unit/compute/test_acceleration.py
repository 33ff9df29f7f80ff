"""Mixed precision, memory format and compilation change the speed of a network, not what it says."""

import copy
import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch._inductor.config
from monai.data import MetaTensor
from torch import nn

from scripts.compute import acceleration
from scripts.compute.acceleration import accelerate, mixed_precision, needs_scaler, unwrap
from scripts.errors import InputError
from scripts.networks import UNet
from scripts.networks.blocks import ResidualBlock
from scripts.networks.heads import Heads
from tests.commands import ROOT

CPU = torch.device("cpu")


def network(**keywords) -> UNet:
    torch.manual_seed(0)
    return UNet(
        **{"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": (8, 16, 32), **keywords}
    )


def image(dims: int = 2) -> torch.Tensor:
    return torch.randn(2, 1, *(32,) * dims, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def half_precision(monkeypatch):
    """Autocast to bfloat16 whatever the processor: it is emulated where the hardware lacks it."""
    monkeypatch.setattr(acceleration, "mixed_precision", lambda device: torch.bfloat16)


def test_without_switches_nothing_changes():
    plain = network().eval()
    assert torch.equal(accelerate(copy.deepcopy(plain), CPU)(image()), plain(image()))


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same_logits(dims):
    plain = network(spatial_dims=dims).eval()
    fast = accelerate(copy.deepcopy(plain), CPU, memory_format="channels_last")
    assert torch.allclose(fast(image(dims)), plain(image(dims)), atol=1e-4)


@pytest.mark.parametrize("memory_format", acceleration.MEMORY_FORMATS)
@pytest.mark.parametrize("dims", [2, 3])
def test_mixed_precision_multiplies_in_half_and_answers_in_float32(half_precision, dims, memory_format):
    plain = network(spatial_dims=dims).eval()
    fast = accelerate(copy.deepcopy(plain), CPU, amp=True, memory_format=memory_format)
    seen = []
    fast.encoder.levels[0].block.convolutions[0][0].register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    logits, expected = fast(image(dims)), plain(image(dims))
    assert seen == [torch.bfloat16]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    assert torch.allclose(logits, expected, atol=0.05 * float(expected.abs().max().detach()))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_keeps_channels_last_its_values_and_its_gradients(dims, samples, affine):
    kind = torch.nn.InstanceNorm2d if dims == 2 else torch.nn.InstanceNorm3d
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    plain = kind(4, affine=affine)
    if affine:
        torch.nn.init.normal_(plain.weight)
        torch.nn.init.normal_(plain.bias)
    fast = copy.deepcopy(plain)
    fast.forward = partial(acceleration._instance_norm, fast)
    x = torch.randn(samples, 4, *(6,) * dims, dtype=torch.float64).requires_grad_()
    y = x.detach().contiguous(memory_format=order).requires_grad_()
    results = [plain.double()(x), fast.double()(y)]
    assert results[1].is_contiguous(memory_format=order)
    assert torch.allclose(*results, atol=1e-10)
    for result in results:
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
    pairs = [
        (x.grad, y.grad),
        *((p.grad, q.grad) for p, q in zip(plain.parameters(), fast.parameters(), strict=True)),
    ]
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-6) for a, b in pairs)


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="oneDNN leaves small images of one thread to others")
@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_holds_through_the_whole_network(dims):
    fast = accelerate(network(spatial_dims=dims), CPU, memory_format="channels_last")
    seen = []
    for module in fast.modules():
        if isinstance(module, torch.nn.InstanceNorm2d | torch.nn.InstanceNorm3d):
            module.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    fast(image(dims))
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert len(seen) == 2 * 10
    assert all(x.is_contiguous(memory_format=order) for x in seen)


def test_strided_points_stay_contiguous_in_half_precision(half_precision, caplog):
    strided = {"block": ResidualBlock, "down": None}
    with caplog.at_level(logging.INFO):
        kept = accelerate(network(**strided), CPU, amp=True, memory_format="channels_last")
    assert "strided 1x1 convolutions" in caplog.text
    assert all(p.is_contiguous() for p in kept.parameters())
    changed = accelerate(network(**strided), CPU, memory_format="channels_last")
    assert not all(p.is_contiguous() for p in changed.parameters())


def test_gradients_are_float32_and_point_the_same_way(half_precision):
    plain = network()
    fast = accelerate(copy.deepcopy(plain), CPU, amp=True)
    for net in (plain, fast):
        net(image()).square().mean().backward()
    for ours in fast.parameters():
        assert ours.grad.dtype == torch.float32
    flat = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (plain, fast)]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.99


def test_every_head_of_deep_supervision_is_float32(half_precision):
    deep = network(channels=(4, 8, 16, 32), heads=partial(Heads, deep_supervision=2))
    heads = accelerate(deep, CPU, amp=True).train()(image())
    assert {name: head.dtype for name, head in heads.items()} == dict.fromkeys(
        ("main", "deep1", "deep2"), torch.float32
    )


def test_weights_go_in_and_out_as_before():
    plain = network()
    fast = accelerate(network(), CPU, amp=True, memory_format="channels_last")
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.load_state_dict(plain.state_dict())


def test_a_network_can_be_had_as_it_was(half_precision):
    before = network().eval()
    fast = accelerate(network().eval(), CPU, amp=True, memory_format="channels_last")
    bare = unwrap(fast)
    assert not any("forward" in vars(module) for module in bare.modules())
    assert torch.allclose(bare(image()), before(image()), atol=1e-4)
    assert all(p is q for p, q in zip(bare.parameters(), fast.parameters(), strict=True))
    assert fast.encoder.levels[0].block.convolutions[0][1].forward.func is acceleration._instance_norm


def test_metadata_does_not_travel_through_the_layers():
    fast = accelerate(network(), CPU)
    assert type(fast(MetaTensor(image()))) is torch.Tensor


def test_a_machine_without_half_precision_says_so_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(acceleration, "mixed_precision", lambda device: None)
    plain = network().eval()
    with caplog.at_level(logging.INFO):
        fast = accelerate(copy.deepcopy(plain), CPU, amp=True)
    assert "no half precision" in caplog.text
    assert torch.equal(fast(image()), plain(image()))


def test_a_machine_without_a_compiler_says_so_and_goes_on(caplog):
    plain = network().eval()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        caplog.at_level(logging.INFO),
    ):
        fast = accelerate(copy.deepcopy(plain), CPU, compile=True)
    assert "no compiler was found" in caplog.text
    assert torch.equal(fast(image()), plain(image()))


def test_compiling_is_told_before_the_first_step_takes_its_minute(monkeypatch, caplog):
    monkeypatch.setattr("scripts.compute.acceleration.can_compile", lambda device: True)
    with caplog.at_level(logging.INFO):
        accelerate(network(), CPU, compile=True)
    assert "compile: the first step at each size of input takes a minute" in caplog.text


def test_the_processor_is_asked_for_its_half_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=supported: answer)
        assert mixed_precision(CPU) == dtype
    assert not needs_scaler(True, CPU)


@pytest.mark.parametrize(
    ("allowed", "dtype", "avx512", "amx"),
    [
        (None, torch.bfloat16, True, True),
        ("ALL", torch.bfloat16, True, True),
        ("avx512_core_amx", torch.bfloat16, True, True),
        ("AVX512_CORE_BF16", torch.bfloat16, True, False),
        ("AVX512_CORE_VNNI", None, True, False),
        ("AVX512_CORE", None, True, False),
        ("AVX2_VNNI_2", None, False, False),
        ("AVX2", None, False, False),
        ("AVX", None, False, False),
        ("SSE41", None, False, False),
    ],
)
def test_limits_of_the_processor_are_heeded(monkeypatch, allowed, dtype, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert mixed_precision(CPU) == dtype
    assert acceleration.has_avx512() == avx512
    assert acceleration.has_amx() == amx
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not acceleration.has_avx512()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": (1, 0, 1)},
        {"padding": (2, 1, 0), "dilation": 2, "bias": False},
        {"groups": 2, "kernel_size": (3, 1, 3), "padding": (1, 0, 1)},
    ],
)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_volumes_padded_beforehand_have_the_same_gradients(settings, order):
    plain = nn.Conv3d(2, 4, **{"kernel_size": 3, "padding": 1, **settings}).double()
    assert acceleration._pads_depth(plain)
    x = torch.randn(2, 2, 7, 6, 5, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    weights = [x, *plain.parameters()]
    results = [plain(x), acceleration._convolve_volume(plain, x)]
    assert torch.equal(*results)
    wanted, found = (torch.autograd.grad(y.square().sum(), weights) for y in results)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize(("avx512", "amp"), [(False, False), (True, False), (False, True)])
def test_volumes_are_padded_beforehand_in_float32_without_avx512(monkeypatch, half_precision, avx512, amp):
    monkeypatch.setattr(acceleration, "has_avx512", lambda: avx512)
    plain = network(spatial_dims=3)
    fast = accelerate(copy.deepcopy(plain), CPU, amp=amp)
    ours = {
        name
        for name, module in fast.named_modules()
        if getattr(vars(module).get("forward"), "func", None) is acceleration._convolve_volume
    }
    padded = {name for name, module in plain.named_modules() if getattr(module, "padding", 0) == (1, 1, 1)}
    assert len(padded) == 10
    assert ours == (set() if avx512 or amp else padded)
    if ours:
        for net in (plain, fast):
            net(image(3)).square().mean().backward()
        for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-4 * float(one.grad.abs().max()) + 1e-7)


def test_padding_of_other_kinds_is_left_alone():
    for settings in ({"padding": "same"}, {"padding": 0}, {"padding": 1, "padding_mode": "reflect"}):
        assert not acceleration._pads_depth(nn.Conv3d(1, 1, 3, **settings))


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_only_old_gpus_need_a_scaler(monkeypatch, capability, dtype):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert mixed_precision(gpu) == dtype
    assert needs_scaler(True, gpu) == (dtype == torch.float16)
    assert not needs_scaler(False, gpu)


def test_an_unknown_memory_format_is_refused():
    with pytest.raises(InputError, match=r"memory_format is 'nhwc'.*contiguous, channels_last"):
        accelerate(network(), CPU, memory_format="nhwc")


#: In a process of its own, which keeps the memory that was freed: so what nobody wrote is full of NaN.
SMALL_MAPS = """
import sys
import torch
from scripts.compute.acceleration import accelerate
from scripts.networks import UNet
from scripts.process import retain_memory

retain_memory()
for memory_format in sys.argv[1:]:
    torch.manual_seed(0)
    network = UNet(3, 1, 3, [4, 8, 16]).train()
    accelerate(network, torch.device("cpu"), amp=True, memory_format=memory_format)
    for repetition in range(20):
        loss = network(torch.rand(2, 1, 8, 8, 8)).square().mean()  # the lowest level has 2 x 2 x 2 voxels
        sizes = (64, 500, 2000, 5000, 20000, 100000)
        filled = [torch.full((n,), float("nan")) for n in sizes for _ in range(9)]
        del filled
        loss.backward()
        assert all(p.grad.isfinite().all() for p in network.parameters()), (memory_format, repetition)
        network.zero_grad()
"""


@pytest.mark.long
def test_maps_smaller_than_the_kernel_have_gradients():
    subprocess.run([sys.executable, "-c", SMALL_MAPS, "contiguous", "channels_last"], cwd=ROOT, check=True)


def test_maps_smaller_than_the_kernel_are_computed_in_single_precision(half_precision):
    """Along whichever axis; all others in half precision."""
    convolution = accelerate(nn.Conv2d(1, 1, (3, 5), padding=(1, 2)), CPU, amp=True).forward.forward
    for size, dtype in (((3, 5), torch.bfloat16), ((2, 5), torch.float32), ((9, 4), torch.float32)):
        with torch.autocast("cpu", torch.bfloat16):
            assert convolution(torch.rand(1, 1, *size)).dtype == dtype


STRIDED = nn.Conv2d(112, 240, 3, stride=2, padding=1)
ENLARGING = nn.ConvTranspose2d(240, 112, 2, stride=2)


@pytest.mark.parametrize(("layer", "size"), [(STRIDED, (8, 2)), (ENLARGING, (4, 1))])
def test_a_stride_to_or_from_one_voxel_along_the_last_axis_agrees_with_single_precision(layer, size):
    """On processors with AMX it was any number, in the map or in the image's gradient."""
    torch.manual_seed(0)
    image = torch.randn(3, layer.in_channels, *size)
    results = []
    for amp in (False, True):
        network, x = accelerate(copy.deepcopy(layer), CPU, amp=amp), image.clone().requires_grad_()
        filled = [torch.full((100_000,), 1e4) for _ in range(20)]
        del filled
        made = network(x)
        made.square().sum().backward()
        results.append((made, x.grad))
    for single, half in zip(*results, strict=True):
        assert (half - single).abs().max() < 0.02 * single.abs().max()


def test_only_such_maps_are_computed_in_single_precision(half_precision):
    for layer, size, dtype in (
        *((STRIDED, (8, 2), torch.float32), (STRIDED, (4, 8), torch.bfloat16)),
        *((ENLARGING, (4, 1), torch.float32), (ENLARGING, (1, 4), torch.bfloat16)),
        (nn.Conv2d(112, 240, 3, padding=1), (8, 3), torch.bfloat16),
        (nn.ConvTranspose2d(240, 112, 3), (4, 1), torch.bfloat16),
    ):
        convolution = accelerate(copy.deepcopy(layer), CPU, amp=True).forward.forward
        with torch.autocast("cpu", torch.bfloat16):
            found = convolution(torch.rand(1, layer.in_channels, *size)).dtype
        assert found == dtype, (layer, size)


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu")])
def test_device_is_an_object_or_its_name(given):
    """MONAI Label hands in names."""
    network = accelerate(nn.Conv2d(1, 1, 3), given, amp=True, memory_format="channels_last")
    assert network(torch.zeros(1, 1, 8, 8)).dtype == torch.float32
    assert needs_scaler(True, given) is False
