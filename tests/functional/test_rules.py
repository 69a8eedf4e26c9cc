"""Every rule against stock PyTorch: equal values to the bit, equal gradients where nothing is rounded, little kept."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import Case, by_rules, quiet
from cases import CASES, aliases, uncovered
from cases_products import CASES as PRODUCTS
from sketches import Whole, normal
from torch import Tensor

import rad
from rad.functional import attention
from rad.measure import saved_bytes
from rad.nn import Seeds
from rad.sketch import tracing

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
every_name = pytest.mark.parametrize("case", CASES + aliases(), ids=[case.name for case in CASES + aliases()])
pytestmark = quiet
WHOLE = Whole()  # the rules' own gradients of what is kept as it is
FEW = rad.Rounding(bits=3)


def test_every_rule_has_a_case():
    assert not uncovered()
    assert len({case.name for case in CASES}) == len(CASES)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_values_statistics_and_random_numbers_are_those_of_stock(case, dtype):
    stock = case.run(None, dtype)
    for sketch in (FEW, WHOLE, rad.Project(0.9)):
        ours = case.run(sketch, dtype)
        assert len(ours.out) == len(stock.out)
        assert all(map(same, ours.out, stock.out))
        assert all(map(torch.equal, ours.buffers, stock.buffers))
        assert torch.equal(ours.random, stock.random)


@every_name
def test_gradients_are_those_of_stock_where_nothing_is_rounded(case):
    torch.testing.assert_close(case.run(WHOLE).grads, case.run().grads, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(case.run(rad.Exact()).grads, case.run().grads, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        case.run(WHOLE, torch.float32).grads, case.run(None, torch.float32).grads, rtol=1e-4, atol=1e-5
    )


ATTENTION = [case for case in CASES if case.function is F.scaled_dot_product_attention]


@pytest.mark.parametrize("case", ATTENTION, ids=[case.name for case in ATTENTION])
@pytest.mark.parametrize("most", [1, 40, 100])
def test_attention_goes_by_blocks_of_any_size(case, most, monkeypatch):
    stock = case.run()
    monkeypatch.setattr(attention, "_BLOCK", most)
    torch.testing.assert_close(case.run(WHOLE).grads, stock.grads, rtol=1e-9, atol=1e-11)
    for ours, exact in zip(case.run(rad.Rounding(bits=16)).grads, stock.grads, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=2e-3 * float(exact.abs().max()) if exact.numel() else 0)


@pytest.mark.parametrize("most", [1, 40, 100, 2**18])
@pytest.mark.parametrize("spans", [1, 2, 8])
def test_blocks_of_attention_are_no_larger_than_they_may_be(most, spans):
    b, h, queries, keys = 5, 2, 12, 9
    causal = spans > 1
    blocks = attention._blocks(torch.Size([b, h, queries, 4]), keys, spans, most)
    seen = torch.zeros(b, queries, keys, dtype=torch.int64)
    for block in blocks:
        part = seen[block.examples, block.rows, block.keys]
        part += 1
        assert h * part.numel() <= max(most, h * keys)
        if causal:  # up to the last row's own
            assert block.keys.stop == min(keys, block.rows.stop)
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    assert (seen <= 1).all()
    assert (seen[:, allowed.tril() if causal else allowed] == 1).all()
    if most == 2**18:
        assert len(blocks) == {1: 1, 2: 2, 8: 6}[spans]  # of twelve rows, in spans as long as one another


def test_graphs_in_the_making_have_few_spans_of_causal_rows(monkeypatch):
    """Of which each is several calls beside operations that are compiled."""
    found, blocks, x = [], attention._blocks, normal(2, 4, 64, 16).requires_grad_()
    monkeypatch.setattr(attention, "_blocks", lambda *args: found.append(args[2]) or blocks(*args))
    for eager in (True, False):
        monkeypatch.setattr(tracing, "eager", lambda eager=eager: eager)
        for causal in (True, False):
            by_rules(lambda x, causal=causal: F.scaled_dot_product_attention(x, x, x, is_causal=causal))(x * 1)
    assert found == [8, 1, 2, 1]


def test_a_tensor_by_keyword_is_one_as_any_other():
    x, weight = normal(64, 64), normal(5, 64, seed=1).requires_grad_()
    calls = {
        "place": lambda: F.linear(x, weight),
        "keyword": lambda: F.linear(x, weight=weight),
        "both": lambda: F.linear(input=x, weight=weight),
    }
    found = {name: saved_bytes(lambda call=call: by_rules(call)()).total for name, call in calls.items()}
    assert len({*found.values()}) == 1, found


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax, torch.mm])
def test_an_argument_by_another_name_is_one_as_any_other(function):
    x = normal(64, 64).requires_grad_()
    second, name = (normal(64, 64, seed=1).requires_grad_(), "mat2") if function is torch.mm else (0, "axis")
    found = [saved_bytes(lambda: by_rules(function)(x * 1, second)).total]
    found.append(saved_bytes(lambda: by_rules(function)(x * 1, **{name: second})).total)
    assert found[0] == found[1] < x.nbytes + (x.nbytes if function is torch.mm else 0)


@pytest.mark.parametrize("function", [F.mse_loss, F.huber_loss, F.binary_cross_entropy_with_logits])
def test_weights_of_a_loss_get_the_gradient_of_stock_or_its_refusal(function):
    x, weight = normal(16, 40).requires_grad_(), normal(16, 40, seed=1).exp().requires_grad_()
    results = []
    for run in (function, by_rules(function)):
        try:
            results.append(torch.autograd.grad(run(x * 1, normal(16, 40, seed=2), weight=weight), [x, weight]))
        except RuntimeError as error:
            results.append(str(error).splitlines()[0])
    stock, ours = results
    assert type(ours) is type(stock)
    assert ours == stock if isinstance(stock, str) else all(map(torch.allclose, ours, stock))


REFUSED = "not implemented for|does not support|expected scalar type|unsupported|must have the same dtype|unsafe to"


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore::rad.BudgetFloorWarning")
def test_autocast_gives_what_it_gives_by_stock(case, dtype):
    results = []
    for sketch in (None, WHOLE, rad.Rounding(bits=8)):
        with torch.autocast("cpu", torch.bfloat16):
            try:
                results.append(case.run(sketch, dtype))
            except RuntimeError as error:
                if sketch is None and re.search(REFUSED, str(error)):
                    return
                raise
    stock = results[0]
    for ours in results[1:]:
        assert len(ours.out) == len(stock.out)
        assert all(map(same, ours.out, stock.out))
        assert [g.dtype for g in ours.grads] == [g.dtype for g in stock.grads]
        assert all(map(torch.equal, ours.buffers, stock.buffers))
    for ours, exact in zip(results[1].grads, stock.grads, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()) if exact.numel() else 0)


@every_case
def test_sixteen_bits_are_nearly_exact(case):
    for ours, stock in zip(case.run(rad.Rounding(bits=16)).grads, case.run().grads, strict=True):
        torch.testing.assert_close(ours, stock, rtol=0, atol=2e-3 * float(stock.abs().max()) if stock.numel() else 0)


@every_case
def test_gradients_are_formed_only_where_they_are_asked_for(case):
    stock = case.run().grads
    for i, place in enumerate(case.places):
        (grad,) = case.run(WHOLE, wanted=[place]).grads
        torch.testing.assert_close(grad, stock[i], rtol=1e-9, atol=1e-11)
        case.run(FEW, wanted=[place])


@every_case
def test_nothing_is_drawn_or_kept_without_a_gradient_to_come(case):
    seeds = Seeds(0)
    before = seeds.get_state()
    with torch.no_grad():
        out = case.call(case.tensors(), FEW, seeds)
    frozen = case.call(case.tensors(wanted=[]), FEW, seeds)
    assert torch.equal(seeds.get_state(), before)
    for result in (out, frozen):
        first = result[0] if isinstance(result, tuple) else result
        assert first.grad_fn is None


def nodes(node: Any) -> list[Any]:
    found, left = [], [node]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.append(node)
            left += [following for following, _ in node.next_functions]
    return found


def tensors_in(value: Any, seen: set[int]) -> list[Tensor]:
    """All tensors that can be reached from attributes, items and closures."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    elif isinstance(value, types.FunctionType):
        parts = [c.cell_contents for c in value.__closure__ or ()] + [*(value.__defaults__ or ()), value.__kwdefaults__]
    elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType, rad.Sketch)):
        parts = list(vars(value).values())
    else:
        parts = []
    return [t for part in parts for t in tensors_in(part, seen)]


@every_case
def test_a_gradient_function_holds_no_tensors_but_the_saved(case):
    out = case.call(case.tensors(), FEW)
    out = out[0] if isinstance(out, tuple) else out
    for node in nodes(out.grad_fn):
        if hasattr(node, "job"):
            assert not tensors_in(node.job, set()), f"{case.name}: {node.job.function}"


def held(case: Case, sketch: rad.Sketch | None, wanted: list[int] | None = None) -> int:
    tensors = case.tensors(wanted=wanted)

    def first() -> Tensor:
        out = case.call(tensors, sketch)
        return out[0] if isinstance(out, tuple) else out

    return rad.measure.saved_bytes(first).total


@every_case
def test_no_more_is_kept_than_by_stock(case):
    assert held(case, FEW) <= held(case, None)


@pytest.mark.parametrize("case", PRODUCTS, ids=[case.name for case in PRODUCTS])
def test_an_operand_is_kept_only_for_the_gradients_of_others(case):
    for place in case.places:
        assert held(case, WHOLE, [place]) <= held(case, None, [place])
