"""Losses of logits by blocks of rows: the same loss, unbiased gradients, and one block of probabilities at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from calls import answered, by_rules
from sketches import assert_unbiased, normal, seeded
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rad
from rad.functional import softmax
from rad.measure import gradients, peak_bytes, saved_bytes
from rad.nn import Seeds
from rad.sketch import kernels

N, C = 13, 40  # in blocks of five rows, and three that are left
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _blocks_of_five_rows(monkeypatch):
    monkeypatch.setattr(softmax, "_BLOCK", 5 * C + 3)


def targets(n: int = N, c: int = C) -> Tensor:
    return torch.randint(c, (n,), generator=seeded(1))


LOSSES: dict[str, Loss] = {
    "mean": F.cross_entropy,
    "sum": lambda x, y: F.cross_entropy(x, y, reduction="sum"),
    "none": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "ignored": lambda x, y: F.cross_entropy(x, y.where(torch.arange(len(y)) % 3 > 0, -100)),
    "ignored, by a class": lambda x, y: F.cross_entropy(x, y % 3, ignore_index=0),
    "ignored, of no class": lambda x, y: F.cross_entropy(
        x, y.where(y > 15, 2 * C), ignore_index=2 * C, reduction="sum"
    ),
    "ignored, all": lambda x, y: F.cross_entropy(x, y * 0 - 100, reduction="sum"),
    "bytes": lambda x, y: F.cross_entropy(x, y.to(torch.uint8), reduction="none"),
    "weights": lambda x, y: F.cross_entropy(x, y, x.detach()[0].exp()),
    "smoothed": lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
    "probabilities": lambda x, y: F.cross_entropy(x, F.one_hot(y, C).to(x.dtype)),
    "images": lambda x, y: F.cross_entropy(x[..., None], y[:, None]),
    "logarithms": lambda x, y: F.log_softmax(x, -1),
    "logarithms of columns": lambda x, y: F.log_softmax(x, 0),
    "logarithms in double": lambda x, y: F.log_softmax(x, 1, dtype=torch.float64),
    "two in turn": lambda x, y: F.nll_loss(F.log_softmax(x, -1), y),
}
BY_BLOCKS = [name for name in LOSSES if name not in ("weights", "smoothed", "probabilities", "images")]


def results(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    leaf = x.detach().requires_grad_()
    out = loss(leaf.view_as(leaf), targets())
    return out.detach(), torch.autograd.grad(out, leaf, normal(*out.shape, seed=7, dtype=out.dtype))[0]


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "columns": lambda x: x.T.contiguous().T,
    "some": lambda x: torch.cat([x, x], 1)[:, :C],
}


@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_to_the_bit(loss, dtype, strides):
    x = strides(normal(N, C, dtype=dtype))
    stock, ours = results(loss, x), results(by_rules(loss), x)
    assert ours[0].dtype == stock[0].dtype
    assert torch.equal(ours[0], stock[0])
    assert ours[1].stride() == stock[1].stride()


@pytest.mark.parametrize("most", [1, 60, 5 * C + 3, 2**22])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_where_hardly_anything_is_rounded(loss, most, monkeypatch):
    monkeypatch.setattr(softmax, "_BLOCK", most)
    x = normal(N, C)
    stock, ours = results(loss, x), results(by_rules(loss, rad.Rounding(bits=16)), x)
    # A row of single precision is so small that it is kept as it is.
    exact = most in (1, 60) and loss in [LOSSES[name] for name in BY_BLOCKS] and stock[0].dtype == x.dtype
    off = 1e-6 if exact else 1e-4
    torch.testing.assert_close(ours[1], stock[1], rtol=off, atol=off * float(stock[1].abs().max()))


@pytest.mark.parametrize("name", ["mean", "ignored", "logarithms", "logarithms of columns"])
def test_right_on_average(name):
    seeds, x = Seeds(1), normal(N, C, dtype=torch.float64)

    def loss(*given: Tensor) -> Tensor:
        with answered(rad.Rounding(bits=1), seeds):
            return LOSSES[name](*given)

    draws = torch.stack([results(loss, x)[1] for _ in range(300)])
    exact = results(LOSSES[name], x)[1]
    assert_unbiased(draws, exact)
    # Blocks have draws of their own, so that the square of a sum over them is off by no more than their variances.
    sums = (draws - exact).view(len(draws), N, C).sum(2)
    parts = torch.stack([sums[:, :5].sum(1), sums[:, 5:10].sum(1), sums[:, 10:].sum(1)], 1)
    products = torch.stack([parts[:, 0] * parts[:, 1], parts[:, 0] * parts[:, 2], parts[:, 1] * parts[:, 2]], 1)
    assert_unbiased(products, torch.zeros(3, dtype=torch.float64))


def test_equal_blocks_have_draws_of_their_own():
    x = normal(1, C).expand(10, C)
    leaf = x.clone().requires_grad_()
    by_rules(F.cross_entropy)(leaf * 1, torch.zeros(10, dtype=torch.int64)).backward()
    assert not torch.equal(leaf.grad[:5], leaf.grad[5:])


def test_mistakes_are_those_of_stock():
    x, y = normal(N, C).requires_grad_(), targets()
    calls: list[Callable[[], Tensor]] = [
        lambda: F.cross_entropy(x * 1, y.index_fill(0, torch.tensor([12]), C)),
        lambda: F.cross_entropy(x * 1, y.index_fill(0, torch.tensor([0]), -1)),
        lambda: F.cross_entropy(x * 1, y[:-1]),
        lambda: F.cross_entropy(x * 1, torch.cat([y, y])),
        lambda: F.cross_entropy(x * 1, y.int()),
        lambda: F.cross_entropy(x * 1, y, reduction="much"),
        lambda: F.cross_entropy(x * 1, y[:, None]),
    ]
    for call in calls:
        with pytest.raises(Exception) as stock:  # noqa: B017, PT011
            call()
        with pytest.raises(type(stock.value)) as ours:
            by_rules(call)()
        assert str(ours.value).splitlines()[0] == str(stock.value).splitlines()[0]


NOTHING: dict[str, Loss] = {
    "all ignored": lambda x, y: F.cross_entropy(x, y * 0 - 100),
    "all ignored, smoothed": lambda x, y: F.cross_entropy(x, y * 0 - 100, label_smoothing=0.1),
    "all ignored, weights": lambda x, y: F.cross_entropy(x, y * 0 - 100, x.detach()[0].exp()),
    "all ignored, logarithms": lambda x, y: F.nll_loss(F.log_softmax(x, -1), y * 0 - 100),
    "some ignored, no weight": lambda x, y: F.cross_entropy(x, y.where(y > 15, -100), torch.zeros(C)),
    "some ignored, no weight, smoothed": lambda x, y: F.cross_entropy(
        x, y.where(y > 15, -100), torch.zeros(C), label_smoothing=0.1
    ),
    "no weight, logarithms": lambda x, y: F.nll_loss(x, y.where(y > 15, -100), torch.zeros(C)),
}


@pytest.mark.parametrize("loss", NOTHING.values(), ids=NOTHING)
def test_a_mean_of_nothing(loss):
    """The loss is not a number, but what is ignored has a gradient of zero all the same."""
    x = normal(N, C)
    stock, ours = results(loss, x), results(by_rules(loss), x)
    assert stock[0].isnan()
    assert torch.equal(stock[1].nan_to_num(1), ours[1].nan_to_num(1))
    assert ours[0].isnan()


def test_bytes_are_those_of_a_single_block_but_for_seeds(monkeypatch):
    x, y = normal(64, 256).requires_grad_(), targets(64, 256)
    for loss in (F.cross_entropy, lambda x, y: F.log_softmax(x, -1)):
        held = []
        for most in (2**22, 16 * 256):
            monkeypatch.setattr(softmax, "_BLOCK", most)
            held.append(saved_bytes(lambda loss=loss: by_rules(loss)(x * 1, y)).total)
        assert held[1] == held[0] + 3 * 8


@pytest.mark.parametrize(("name", "stock", "ours", "whole"), [("mean", 2.9, 1.4, 2.2), ("two in turn", 2.9, 2.4, 3.2)])
def test_a_single_block_of_probabilities_is_dense_at_a_time(name, stock, ours, whole, monkeypatch):
    if kernels.numba is None:
        pytest.skip("levels are unpacked as numbers of their own without numba")
    n, c = 256, 1000
    hidden, weight, y = normal(n, 4), normal(4, c).requires_grad_(), targets(n, c)

    def peak(run: Loss) -> float:
        """In units of the logits, which nobody else holds."""
        weight.grad = torch.zeros_like(weight)
        return peak_bytes(lambda: run(hidden @ weight, y).backward()) / (4 * n * c)

    few = by_rules(LOSSES[name])
    monkeypatch.setattr(softmax, "_BLOCK", n * c // 16)
    assert peak(few) < ours
    monkeypatch.setattr(softmax, "_BLOCK", n * c)
    assert peak(few) < whole
    assert peak(LOSSES[name]) > stock


def test_graphs_in_the_making_know_of_no_blocks():
    assert [len(rows) for rows in softmax._blocks(torch.zeros(N, C))] == [5, 5, 3]
    with FakeTensorMode():
        assert len(softmax._blocks(torch.zeros(N, C))) == 1


class Model(nn.Module):
    """The loss of given logits."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(x * 1, targets())


@pytest.mark.parametrize("loss", [LOSSES[name] for name in BY_BLOCKS], ids=BY_BLOCKS)
def test_inside_transforms(loss):
    x, model = normal(N, C), rad.convert(Model(loss), rad.Rounding(bits=16))
    out, pull = torch.func.vjp(model, x)
    upstream = normal(2, *out.shape, dtype=out.dtype)
    found = [torch.func.vmap(pull)(upstream)[0]]  # several gradients at once
    with torch.no_grad():
        found.append(torch.func.vmap(pull)(upstream)[0])
    leaf = x.clone().requires_grad_()
    each = torch.stack([torch.autograd.grad(loss(leaf, targets()), leaf, g)[0] for g in upstream])
    torch.testing.assert_close(found, [each, each], rtol=1e-4, atol=1e-4 * float(each.abs().max()))

    def summed(x: Tensor) -> Tensor:
        return model(x).square().sum()

    (exact,) = torch.autograd.grad(loss(leaf, targets()).square().sum(), leaf)
    with torch.no_grad():
        found = torch.func.grad(summed)(x)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("loss", [LOSSES[name] for name in BY_BLOCKS], ids=BY_BLOCKS)
def test_what_plans_are_made_by(loss, monkeypatch):
    model = nn.Sequential(nn.Linear(4, C), Model(lambda x, y: loss(x, y).square().sum()))
    x = normal(N, 4)
    found = []
    for most in (2**22, 5 * C + 3):
        monkeypatch.setattr(softmax, "_BLOCK", most)
        plan = rad.allocate(model, lambda: model(x), 1700)
        rad.convert(model, plan)
        assert saved_bytes(lambda: model(x)).total == plan.nbytes
        rad.revert(model)
        assert any(item.place.endswith("probabilities") and item.bits for item in plan.items)
        found.append([item.place for item in plan.items])
    assert found[0] == found[1]
    monkeypatch.setattr(softmax, "_BLOCK", 2 * C)
    gradients(rad.convert(model, plan), lambda: model(x))
