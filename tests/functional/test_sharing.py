"""What is summarized once for several operations, and what must never share a draw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sketches import SKETCHES, normal
from torch import Tensor, nn

import rad
from rad.sketch import tracing

BUDGETED = [make(0.4) for make in SKETCHES.values()]


class Net(nn.Module):
    """Any forward pass over a few weights."""

    def __init__(self, run: Callable[..., Tensor], weights: int = 3, d: int = 64) -> None:
        super().__init__()
        self.run = run
        self.weights = nn.ParameterList(normal(d, d, seed=i) for i in range(weights))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.weights)


@pytest.fixture
def summaries(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is summarized, in order."""
    seen: list[Tensor] = []
    stock = tracing.compress

    def compress(sketch: rad.Sketch, x: Tensor, seed: Callable[[], Tensor]):
        seen.append(x)
        return stock(sketch, x, seed)

    monkeypatch.setattr(tracing, "compress", compress)
    return seen


def converted(run: Callable[..., Tensor], sketch: rad.Sketch, weights: int = 3) -> Net:
    return rad.convert(Net(run, weights), sketch)


def branches(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.linear(x, q) + F.linear(x, k) + F.linear(x, v)


@pytest.mark.parametrize("sketch", BUDGETED, ids=str)
def test_three_weights_of_one_tensor_share_a_summary(sketch, summaries):
    x = normal(32, 64)
    net = converted(branches, sketch)
    bytes_of_three = rad.measure.saved_bytes(lambda: net(x)).total
    assert len(summaries) == 1
    one = converted(lambda x, q: F.linear(x, q), sketch, 1)
    assert bytes_of_three == rad.measure.saved_bytes(lambda: one(x)).total <= 0.4 * x.nbytes + 8


@pytest.mark.parametrize("sketch", [*BUDGETED, rad.Exact()], ids=str)
@pytest.mark.parametrize("full_first", [False, True])
def test_what_autocast_casts_is_no_summary_of_what_it_does_not(sketch, full_first):
    """As in a mixture of experts whose router is left in single precision."""

    def run(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        found = []
        for full in (full_first, not full_first):
            with torch.autocast("cpu", torch.bfloat16, enabled=not full):
                found.append(F.linear(x, q if full else k).float())
        return found[0] * found[1]

    x, net = normal(32, 64), converted(run, sketch, 2)
    net(x).sum().backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in net.weights)


class Layers(nn.ModuleList):
    """The sum of what layers make of one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self)


def test_layers_of_different_sketches_share_nothing(summaries):
    few, many = rad.Rounding(bits=3), rad.Rounding(bits=8)
    net = rad.convert(Layers(nn.Linear(64, 64) for _ in range(3)), {"": few, "1": many, "2": many})
    x = normal(32, 64)
    ledger = rad.measure.saved_bytes(lambda: net(x))
    assert len(summaries) == 2
    bits = {e.nbytes: e.keeps for e in ledger.entries if e.dtype == torch.uint8}
    assert bits == {32 * 64 * b // 8: str(sketch) for b, sketch in ((3, few), (8, many))}


def test_views_of_a_tensor_share_what_is_the_same_part_of_it(summaries):
    def run(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        flat = F.linear(x.view(2, 16, 64), a).sum() + F.linear(x.view(-1, 64), b).sum()
        return flat + F.linear(x.view(64, 32), c[:, :32].detach().requires_grad_()).sum()

    converted(run, rad.Rounding(bits=3))(normal(32, 64))
    assert [s.shape[1] for s in summaries] == [64, 32]
    summaries.clear()
    converted(lambda x, a, b: F.linear(x[:16], a) + F.linear(x[16:], b), rad.Rounding(bits=3), 2)(normal(32, 64))
    assert len(summaries) == 2


def test_what_was_overwritten_is_summarized_anew(summaries):
    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        x = x * 1
        first = F.linear(x, a)
        x.mul_(2)
        return first + F.linear(x, b)

    net, x = converted(run, rad.Rounding(bits=16), 2), normal(32, 64)
    grads = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    assert len(summaries) == 2
    torch.testing.assert_close(grads[1], 2 * grads[0], rtol=0, atol=1e-2)


def test_another_forward_pass_draws_anew(summaries):
    net, x = converted(lambda x, a: F.linear(x, a), rad.Rounding(bits=3), 1), normal(32, 64)
    first, second = (torch.autograd.grad(net(x).sum(), list(net.parameters()))[0] for _ in range(2))
    assert len(summaries) == 2
    assert not torch.equal(first, second)
    both = net(x) + net(x)  # two passes before one backward pass
    torch.autograd.grad(both.sum(), list(net.parameters()))
    assert len(summaries) == 4


def test_a_pass_that_fails_leaves_nothing_behind(summaries):
    def run(x: Tensor, a: Tensor) -> Tensor:
        F.linear(x, a)
        raise ZeroDivisionError

    net = converted(run, rad.Rounding(bits=3), 1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            net(X)
    assert len(summaries) == 2


X = normal(32, 64)


def test_a_tensor_in_the_place_of_another_is_not_taken_for_it(summaries):
    def run(x: Tensor, a: Tensor) -> Tensor:
        out = 0
        for i in range(5):
            temporary = x + i  # freed at the end of each turn: the next may get its memory and its id
            out = out + F.linear(temporary, a)
        return out

    converted(run, rad.Rounding(bits=3), 1)(X)
    assert len(summaries) == 5


def seeds_of(out: Tensor) -> list[int]:
    """Seeds of all summaries that the graph of ``out`` holds."""
    found, seen, left = [], set(), [out.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "job"):
            found += [int(t) for t in node.saved_tensors if t.dtype == torch.int64 and t.dim() == 0]
        left += [following for following, _ in node.next_functions]
    return found


PATHS = {
    "product with itself": lambda x, a, b, c: (h := F.linear(x, a)) * h,
    "matrix with itself": lambda x, a, b, c: (h := F.linear(x, a)) @ h.mT,
    "stack with itself": lambda x, a, b, c: (h := F.linear(x, a).view(2, 16, 64)) @ h.mT,
    "form in itself": lambda x, a, b, c: torch.einsum("ij,kj->ik", h := F.linear(x, a), h),
    "gate": lambda x, a, b, c: (h := F.linear(x, a)) * torch.sigmoid(h),
    "attention to itself": lambda x, a, b, c: F.scaled_dot_product_attention(*[F.linear(x, a).view(1, 2, 16, 64)] * 3),
    "quotient": lambda x, a, b, c: (h := F.linear(x, a)) / (h.square() + 1),
    "normalized twice": lambda x, a, b, c: F.layer_norm(F.layer_norm(F.linear(x, a), [64]), [64]),
    "two weights that are computed": lambda x, a, b, c: (
        F.linear(h := F.linear(x, a), b * 1) * F.linear(h, torch.tanh(c))
    ),
    "weight that is computed": lambda x, a, b, c: F.linear(h := F.linear(x, a), h),
}


@pytest.mark.parametrize("run", PATHS.values(), ids=PATHS)
def test_factors_on_a_path_have_draws_of_their_own(run):
    seeds = seeds_of(converted(run, rad.Rounding(bits=3))(X))
    assert len(seeds) > 1
    assert len(set(seeds)) == len(seeds)


def test_an_end_and_a_factor_do_not_share_a_draw():
    # The tensor before two branches: one weighs it, the other takes it as a factor of a path.
    def run(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h = F.linear(x, a)
        return F.linear(h, b) + h * F.linear(h, c)

    seeds = seeds_of(converted(run, rad.Rounding(bits=3))(X))
    # x for a; h for b and c, with one draw; h and the product's other side as factors.
    assert sorted(map(seeds.count, set(seeds))) == [1, 1, 1, 2]
