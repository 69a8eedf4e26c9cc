"""What PyTorch offers around a model goes on working: torch.func, autocast, accumulation, checkpoints, copies."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from blocks import Attention, Residual, distance, gradients
from sketches import normal
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import rad

SKETCH = rad.Rounding(bits=3)
NETS = {"transformer": (Attention, (2, 8, 32)), "residual": (Residual, (2, 16, 6, 6))}
every_net = pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)


def converted(make, sketch=SKETCH, seed: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return rad.convert(make(), sketch, generator=torch.Generator().manual_seed(seed))


@every_net
def test_functional_call_and_grad(make, shape):
    model, x = converted(make), normal(*shape)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = rad.nn.seeds(model).get_state()

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(model, (parameters, buffers), (x,)).square().mean()

    transformed = grad(loss)({name: p.detach() for name, p in parameters.items()}, copy.deepcopy(buffers))
    rad.nn.seeds(model).set_state(state)
    expected = gradients(model, x)
    assert distance(transformed, expected) < 1e-5
    rad.nn.seeds(model).set_state(state)
    called = torch.autograd.grad(loss(parameters, copy.deepcopy(buffers)), list(parameters.values()))
    assert distance(dict(zip(parameters, called, strict=True)), expected) < 1e-5


def test_vmap_is_refused():
    model = converted(Attention)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = vmap(grad(lambda p, x: functional_call(model, p, (x[None],)).square().mean()), (None, 0))
    with pytest.raises(NotImplementedError, match="vmap, whose examples would share their draws"):
        each(parameters, normal(3, 8, 32))


@every_net
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(make, shape, dtype):
    x, stock = normal(*shape), rad.revert(converted(make))
    model = converted(make, rad.Rounding(bits=10))
    with torch.autocast("cpu", dtype):
        assert torch.equal(model(x), stock(x))
        many, exact = gradients(model, x), gradients(stock, x)
    assert all(g.dtype == torch.float32 for g in many.values())
    assert distance(many, exact) < 0.03


@every_net
def test_accumulation(make, shape):
    x = normal(*shape)
    once, twice = (converted(make) for _ in range(2))
    expected = [gradients(once, x) for _ in range(2)]
    for _ in range(2):
        twice(x).square().mean().backward()
    total = {name: expected[0][name] + expected[1][name] for name in expected[0]}
    assert distance({name: p.grad for name, p in twice.named_parameters()}, total) < 1e-5
    assert distance(*expected) > 0.01


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.blocks, self.reentrant = nn.ModuleList([Attention(), Attention()]), reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_inside(reentrant):
    x = normal(2, 8, 32).requires_grad_()
    model, stock = converted(lambda: Checkpointed(reentrant)), rad.revert(converted(lambda: Checkpointed(reentrant)))

    def backward(model: nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        model(x).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    exact, draws = backward(stock), [backward(model) for _ in range(60)]
    each = [distance(draw, exact) for draw in draws]
    mean = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in exact}
    assert min(each) > 0.01
    # A mean of 60 independent draws is √60 = 7.7 times closer, if they are unbiased.
    assert distance(mean, exact) < 1.6 * max(each) / 60**0.5
    rad.convert(model, rad.Rounding(bits=12))
    assert distance(backward(model), exact) < 0.01


@pytest.mark.parametrize("duplicate", ["deepcopy", "torch.save", "state_dict"])
@every_net
def test_copies_go_on_bit_for_bit(make, shape, duplicate):
    model, x, file = converted(make), normal(*shape), io.BytesIO()
    gradients(model, x)
    if duplicate == "deepcopy":
        other = copy.deepcopy(model)
    elif duplicate == "torch.save":
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        torch.save({"model": model.state_dict(), "seeds": rad.nn.seeds(model).get_state()}, file)
        file.seek(0)
        loaded, other = torch.load(file), converted(make, seed=9)
        other.load_state_dict(loaded["model"])
        rad.nn.seeds(other).set_state(loaded["seeds"])
    following = gradients(model, x)
    assert distance(gradients(other, x), following) == 0
    assert rad.nn.seeds(other) is not rad.nn.seeds(model)
    assert type(rad.revert(other)) is make


def test_fp16_training_step_with_a_scaler():
    model = converted(lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)))
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(normal(8, 16)), torch.arange(8) % 4)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert all(p.isfinite().all() for p in model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
