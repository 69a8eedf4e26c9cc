"""Whole nets on a GPU: memory, precision, determinism, compilation, several devices."""

from __future__ import annotations

import copy
import os
import statistics

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from blocks import Attention, Residual, distance, gradients
from calls import by_rules
from on_device import gpu
from sketches import normal
from torch import distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

import rad
from rad.functional.fused import fused
from rad.measure import peak_bytes, saved_bytes
from rad.nn import Seeds
from rad.sketch import gpu as loops

pytestmark = gpu
FEW = rad.Rounding(bits=3)


@pytest.fixture(autouse=True)
def _same_every_time(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


BLOCKS = {"attention": (Attention, (16, 64, 32)), "residual": (Residual, (8, 16, 24, 24))}
every_block = pytest.mark.parametrize("name", BLOCKS)


def made(name, device="cuda", dtype=torch.float32):
    make, shape = BLOCKS[name]
    torch.manual_seed(0)
    return make().to(device, dtype), normal(*shape, dtype=dtype).to(device)


@every_block
def test_the_same_seeds_give_the_same_gradients(name):
    model, x = made(name)
    found = [gradients(rad.convert(model, FEW, generator=Seeds(5)), x) for _ in range(2)]
    other = gradients(rad.convert(model, FEW, generator=Seeds(6)), x)
    assert all(torch.equal(a, found[1][key]) for key, a in found[0].items())
    assert 0 < distance(other, found[0]) < 1


@every_block
def test_gradients_are_those_of_a_cpu_with_the_same_seeds(name):
    found = []
    for device in ("cuda", "cpu"):
        model, x = made(name, device, torch.float64)
        found.append(gradients(rad.convert(model, FEW, generator=Seeds(5)), x))
    assert distance({key: g.cpu() for key, g in found[0].items()}, found[1]) < 1e-6


@every_block
def test_loops_and_plain_pytorch_give_the_same_gradients(name, monkeypatch):
    model, x = made(name)
    found = []
    for enabled in (True, False):
        monkeypatch.setattr(loops, "enabled", enabled)
        found.append(gradients(rad.convert(model, FEW, generator=Seeds(5)), x))
    assert distance(*found) < 1e-5


@pytest.mark.montecarlo
@every_block
def test_the_mean_of_many_draws_is_the_gradient(name):
    model, x = made(name)
    exact = gradients(model, x)
    few = rad.convert(copy.deepcopy(model), FEW, generator=Seeds(0))
    noise = rad.measure.gradient_noise(lambda: gradients(few, x), 100, exact).total
    assert noise.bias < 3 * noise.bias_error + 1e-4 * noise.norm2**0.5


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype):
    model, x = made(name)
    few = rad.convert(copy.deepcopy(model), FEW, generator=Seeds(0))
    with torch.autocast("cuda", dtype):
        expected, out = model(x), few(x)
        assert torch.equal(out, expected)
        assert (
            saved_bytes(lambda: few(x).float().square().mean()).total
            < 0.5 * saved_bytes(lambda: model(x).float().square().mean()).total
        )
        near = rad.convert(copy.deepcopy(model), rad.Rounding(bits=12), generator=Seeds(0))
        exact = gradients(model, x)
        assert distance(gradients(near, x), exact) < 0.05
        noisy = gradients(few, x)
    assert distance(noisy, exact) < 1
    assert all(g.dtype == torch.float32 and g.device.type == "cuda" for g in noisy.values())


@every_block
def test_half_precision_weights(name):
    model, x = made(name, dtype=torch.bfloat16)
    exact = gradients(model, x)
    near = gradients(rad.convert(copy.deepcopy(model), rad.Rounding(bits=12), generator=Seeds(0)), x)
    assert distance({k: g.float() for k, g in near.items()}, {k: g.float() for k, g in exact.items()}) < 0.1


def test_gradient_scaler():
    model, x = made("attention")
    rad.convert(model, FEW)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 1e-3), torch.amp.GradScaler("cuda")
    before = [p.clone() for p in model.parameters()]
    with torch.autocast("cuda", torch.float16):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@every_block
def test_compiled_as_eager(name):
    torch._dynamo.reset()
    model, x = made(name)
    exact = gradients(model, x)
    rad.convert(model, FEW, generator=Seeds(0))
    compiled = torch.compile(model, fullgraph=True)
    draws = [{key.removeprefix("_orig_mod."): g for key, g in gradients(compiled, x).items()} for _ in range(40)]
    mean = {key: torch.stack([d[key] for d in draws]).mean(0) for key in exact}
    one = statistics.fmean(distance(d, exact) for d in draws)
    assert 0 < one < 1
    assert distance(mean, exact) < 1.6 * one / 40**0.5 + 1e-3


def resnet():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).cuda(), torch.randn(32, 3, 128, 128, device="cuda")


class GPT(nn.Module):
    def __init__(self, layers: int = 6, d: int = 384, heads: int = 6, words: int = 1000) -> None:
        super().__init__()
        self.words = nn.Embedding(words, d)
        self.blocks = nn.Sequential(*(Attention(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, words, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.words(tokens))))


def gpt():
    torch.manual_seed(0)
    return GPT().cuda(), torch.randint(1000, (16, 256), device="cuda")


@pytest.mark.parametrize("make", [resnet, gpt])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_the_allocator_peaks_below_stock(make, half, capsys):
    model, x = make()
    few = rad.convert(copy.deepcopy(model), FEW, generator=Seeds(0))
    few.load_state_dict(model.state_dict())

    def step(net):
        def run():
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                out = net(x).float()
                loss = F.cross_entropy(out.flatten(0, -2), torch.zeros(out[..., 0].numel(), dtype=torch.long).cuda())
            loss.backward()

        run()  # gradients and workspaces are there
        return peak_bytes(run, "cuda")

    stock, ours = step(model), step(few)
    with capsys.disabled():
        print(f"\n{make.__name__}, {'bf16' if half else 'fp32'}: peak {ours / 1e6:.0f} of {stock / 1e6:.0f} MB")
    assert ours < 0.9 * stock


def test_a_sharper_look_at_what_waits_for_the_device():
    """A forward and a backward pass of a converted net never wait for the device."""
    for name in BLOCKS:
        model, x = made(name)
        rad.convert(model, FEW)
        gradients(model, x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            gradients(model, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_default_device_and_its_context():
    model, x = made("attention")
    with torch.device("cuda"):
        few = rad.convert(copy.deepcopy(model), FEW, generator=Seeds(1))
        inside = gradients(few, x)
    outside = gradients(rad.convert(copy.deepcopy(model), FEW, generator=Seeds(1)), x)
    assert all(torch.equal(inside[key], g) for key, g in outside.items())


def test_mixed_devices_are_named():
    model = rad.convert(nn.Linear(16, 16).cuda(), FEW)
    with pytest.raises(RuntimeError, match="device"):
        model(torch.randn(4, 16))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_the_current_one():
    x = normal(8, 4096)
    kept = [FEW.compress(x.to(f"cuda:{i}"), seed=torch.tensor(3)) for i in range(2)]
    assert torch.equal(kept[0].kept[0].cpu(), kept[1].kept[0].cpu())
    assert torch.equal(FEW.expand(kept[0]).cpu(), FEW.expand(kept[1]).cpu())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent(kind):
    torch.manual_seed(0)
    stock = kind(12, 16, num_layers=2, batch_first=True).cuda().double()
    x = normal(6, 20, 12, dtype=torch.float64).cuda()
    few = rad.convert(copy.deepcopy(stock), rad.Rounding(bits=12), generator=Seeds(0))
    torch.testing.assert_close(few(x)[0], stock(x)[0], rtol=1e-9, atol=1e-12)
    found = [
        dict(
            zip(
                dict(m.named_parameters()),
                torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())),
                strict=True,
            )
        )
        for m in (few, stock)
    ]
    assert distance(*found) < 0.02


def work(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=torch.cuda.device_count())
    model, x = made("attention", f"cuda:{rank}")
    ddp = DistributedDataParallel(rad.convert(model, FEW), device_ids=[rank])
    ddp(x).square().mean().backward()
    grads = torch.cat([p.grad.flatten() for p in ddp.parameters()])
    first = grads.clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, grads)
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_data_parallel():
    mp.spawn(work, (29_517,), nprocs=torch.cuda.device_count())


KERNELS = {  # lengths from which on they keep little more than blocks of rows do
    SDPBackend.FLASH_ATTENTION: (torch.bfloat16, 512),
    SDPBackend.CUDNN_ATTENTION: (torch.bfloat16, 512),
    SDPBackend.EFFICIENT_ATTENTION: (torch.float32, 1280),
}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"is_causal": True, "dropout_p": 0.1}], ids=str)
def test_fused_attention(options, kernel):
    """Values and dropped probabilities of stock's own kernel; gradients of it where hardly anything is rounded."""
    dtype, length = KERNELS[kernel]
    operands = [normal(2, 4, length, 64, seed=i, dtype=dtype).cuda().requires_grad_() for i in range(3)]
    upstream, found, sketch = normal(2, 4, length, 64, seed=9, dtype=dtype).cuda(), [], rad.Rounding(bits=12)
    with sdpa_kernel(kernel):
        if not possible(kernel, operands, options):
            pytest.skip("PyTorch has no such kernel for this card")
        mask, drop = options.get("attn_mask"), options.get("dropout_p", 0.0)
        assert fused(*operands, mask, drop, "is_causal" in options, None, FEW)
        for attend in (F.scaled_dot_product_attention, by_rules(F.scaled_dot_product_attention, sketch)):
            torch.cuda.manual_seed(1)
            out = attend(*(t * 1 for t in operands), **options)
            found.append((out.detach(), torch.autograd.grad(out, operands, upstream)))
    assert torch.equal(found[0][0], found[1][0])
    for ours, stock in zip(found[1][1], found[0][1], strict=True):
        assert float((ours - stock).float().norm() / stock.float().norm()) < 0.02


def possible(kernel, operands, options):
    """Whether stock can take a kernel at all."""
    try:
        F.scaled_dot_product_attention(*operands, **options)
    except RuntimeError:
        return False
    return True
