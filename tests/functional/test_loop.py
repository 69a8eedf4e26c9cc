"""The recurrent loop against the same loop in plain PyTorch: values, gradients, and what is held when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sketches import SKETCHES, assert_unbiased, held, normal
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rad
from rad.functional import Call, scan
from rad.functional.loop import loop
from rad.measure import peak_bytes
from rad.nn.seeds import Seeds
from rad.sketch import tracing

EXACT = {name: make(1) for name, make in SKETCHES.items()} | {"exact": rad.Exact()}
BUDGETED = {name: make(0.5) for name, make in SKETCHES.items()}
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}

every_sketch = pytest.mark.parametrize("sketch", BUDGETED.values(), ids=BUDGETED)
every_exact = pytest.mark.parametrize("sketch", EXACT.values(), ids=EXACT)
both = pytest.mark.parametrize("nonlinearity", ACTIVATIONS)


@dataclass(frozen=True)
class Sizes:
    """Steps, sequences, input and hidden features."""

    T: int = 7
    n: int = 3
    d: int = 6
    h: int = 8

    def inputs(self, dtype: torch.dtype = torch.float64, bias: bool = True) -> list[Tensor | None]:
        shapes = [(self.T, self.n, self.d), (self.n, self.h), (self.h, self.d), (self.h, self.h), (self.h,), (self.h,)]
        tensors = [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
        tensors[3] /= self.h**0.5
        return [t.requires_grad_() if bias or i < 4 else None for i, t in enumerate(tensors)]


SIZES = Sizes()
sizes = st.builds(Sizes, st.integers(1, 9), st.integers(1, 4), st.integers(1, 7), st.integers(1, 9))


@pytest.fixture
def three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of at most three steps at ``SIZES`` in float64."""
    monkeypatch.setattr(scan, "_CHUNK_UNIT", 1)
    monkeypatch.setattr(scan, "_CHUNK_BYTES", 3 * SIZES.n * SIZES.h * 8)


def rnn(
    inputs: list[Tensor | None],
    nonlinearity: str,
    sketch: rad.Sketch,
    seeds: Seeds | int = 0,
    sequence: bool = True,
    reverse: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """The loop as its tests call it: outputs, if wanted, and the last state."""
    call = Call(sketch, (Seeds(seeds) if isinstance(seeds, int) else seeds).next)
    out = loop(call, nonlinearity == "tanh", sequence, reverse, *inputs)
    return out if sequence else (None, out)


def estimated(x: Tensor, estimate: Tensor, weight: Tensor) -> Tensor:
    """``x weightᵀ`` with its gradients, but for that of the weight, in which an estimate stands for ``x``."""
    surrogate = estimate @ weight.t()
    return x @ weight.t().detach() + surrogate - surrogate.detach()


def oracle(
    inputs: list[Tensor | None], nonlinearity: str, estimates: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """All states and the last one by a plain loop.

    ``estimates`` stand for inputs and states in weight gradients, and for the slopes of tanh.
    """
    x, state, weight_ih, weight_hh, bias_ih, bias_hh = inputs
    states = []
    for t in range(len(x)):
        x_hat, h_hat = (x[t].detach(), state.detach()) if estimates is None else (estimates[0][t], estimates[1][t])
        total = estimated(x[t], x_hat, weight_ih) + estimated(state, h_hat, weight_hh)
        for bias in (bias_ih, bias_hh):
            total = total if bias is None else total + bias
        state = ACTIVATIONS[nonlinearity](total)
        if estimates is not None and nonlinearity == "tanh":
            surrogate = total * estimates[2][t]
            state = surrogate + (state - surrogate).detach()
        states.append(state)
    return torch.stack(states), state


@contextmanager
def drawing() -> Iterator[list[Tensor]]:
    """The estimates that are drawn meanwhile."""
    estimates = []

    def compress(sketch: rad.Sketch, *args: object) -> rad.sketch.Compressed:
        made = original(sketch, *args)
        estimates.append(sketch.expand(made).clone())
        return made

    with pytest.MonkeyPatch.context() as patch:
        original = tracing.compress
        patch.setattr(tracing, "compress", compress)
        yield estimates


def drawn(
    estimates: list[Tensor], sketch: rad.Sketch, inputs: list[Tensor | None], nonlinearity: str, reverse: bool = False
) -> tuple[Tensor, ...]:
    """The estimates of inputs, states before and slopes of all steps in the order of time, from those of each chunk."""
    x, h0 = (t.detach() for t in inputs[:2])
    after, count, queue = oracle(inputs, nonlinearity)[0].detach(), len(x), iter(estimates)
    rounded = nonlinearity == "tanh" and sketch.serves_factors
    parts: list[list[Tensor]] = [[], [], []]
    for start, stop in scan.Steps([len(h0)] * count, reverse, h0.nbytes).chunks:
        part = slice(count - stop, count - start) if reverse else slice(start, stop)
        x_, before, slopes = x[part], torch.cat([h0[None], after[:-1]])[part], 1 - after[part].square()
        kept = x.shape[2] == 1, nonlinearity == "tanh" and not rounded, not rounded or slopes.nbytes <= 256
        for found, values, exact in zip(parts, (x_, before, slopes), kept, strict=True):
            estimate = values if exact else next(queue).reshape(values.shape)
            found.append(estimate.flip(0) if reverse and not exact else estimate)
    assert next(queue, None) is None
    return tuple(map(torch.cat, parts))


def gradients(outs: tuple[Tensor | None, ...], inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
    """Of a loss whose gradient with respect to all outputs is fixed and has no pattern."""
    given = [out for out in outs if out is not None]
    upstream = [normal(*out.shape, seed=9 + i, dtype=out.dtype) for i, out in enumerate(given)]
    return torch.autograd.grad(given, [t for t in inputs if t is not None], upstream)


@both
@every_exact
@settings(max_examples=10)
@given(shape=sizes, bias=st.booleans())
def test_whole_budget_is_autograd(sketch, nonlinearity, shape, bias):
    inputs = shape.inputs(bias=bias)
    ours, plain = rnn(inputs, nonlinearity, sketch), oracle(inputs, nonlinearity)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, inputs), gradients(plain, inputs))


# The budget is large enough for one unit of every sketch at every shape.
@both
@pytest.mark.parametrize("make", SKETCHES.values(), ids=SKETCHES)
@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@settings(max_examples=10)
@given(T=st.integers(1, 9), n=st.integers(1, 4), d=st.sampled_from([1, 2, 6]), h=st.sampled_from([2, 8]))
def test_gradients_are_those_of_the_estimates(three_steps, make, nonlinearity, sequence, reverse, T, n, d, h):
    inputs, sketch = Sizes(T, n, d, h).inputs(), make(0.7)
    with drawing() as estimates:
        ours = rnn(inputs, nonlinearity, sketch, 1, sequence, reverse)
    in_time = [inputs[0].flip(0) if reverse else inputs[0], *inputs[1:]]
    states, last = oracle(in_time, nonlinearity, drawn(estimates, sketch, in_time, nonlinearity, reverse))
    plain = ((states.flip(0) if reverse else states) if sequence else None, last)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, inputs), gradients(plain, inputs))


@both
@every_sketch
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["sequence", "last", "both"])
def test_either_output_may_go_unused(three_steps, sketch, nonlinearity, outputs):
    inputs = SIZES.inputs()
    with drawing() as estimates:
        ours = rnn(inputs, nonlinearity, sketch)
    plain = oracle(inputs, nonlinearity, drawn(estimates, sketch, inputs, nonlinearity))
    pick = [tuple(outs[i] for i in outputs) for outs in (ours, plain)]
    torch.testing.assert_close(gradients(pick[0], inputs), gradients(pick[1], inputs))


@pytest.mark.montecarlo
# 112 entries for each of seven sketches at five standard errors: a false alarm in 1 of 2,000 choices of seeds.
@every_sketch
def test_weight_gradients_are_unbiased(three_steps, sketch):
    inputs, seeds = SIZES.inputs(torch.float32), Seeds(0)
    weights = inputs[2:4]
    draws = [gradients(rnn(inputs, "relu", sketch, seeds), weights) for _ in range(300)]
    exact = gradients(oracle(inputs, "relu"), weights)
    for i in range(2):
        assert_unbiased(torch.stack([grads[i] for grads in draws]), exact[i])


@pytest.mark.montecarlo
@every_sketch
def test_each_step_has_a_draw_of_its_own(three_steps, sketch):
    # With no recurrent weight all states are equal. The output of step t has a gradient in feature t alone, so that
    # row t of the weight's gradient holds the estimate of the state before that step and nothing else.
    inputs, seeds = SIZES.inputs(), Seeds(0)
    with torch.no_grad():
        for i in (0, 3):
            inputs[i].zero_()
        inputs[4].fill_(1).add_(normal(SIZES.h, dtype=torch.float64).abs())
        inputs[5].zero_()
        inputs[1].copy_(inputs[4])
    grad_out = torch.eye(SIZES.T, SIZES.h, dtype=torch.float64)[:, None].expand(-1, SIZES.n, -1)
    probe = normal(SIZES.h, seed=8, dtype=torch.float64)
    errors = []
    for _ in range(250):
        out, _ = rnn(inputs, "relu", sketch, seeds)
        (grad,) = torch.autograd.grad(out, inputs[3], grad_out)
        errors.append((grad[: SIZES.T] - SIZES.n * inputs[4].detach()) @ probe)
    correlation = torch.corrcoef(torch.stack(errors).t())
    assert (correlation - torch.eye(SIZES.T)).abs().max() < 5 / len(errors) ** 0.5


@both
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [SIZES, Sizes(1, 1, 1, 1), Sizes(1, 4, 3, 5), Sizes(5, 1, 3, 5), Sizes(5, 3, 3, 1)])
def test_gradcheck(three_steps, nonlinearity, bias, shape):
    # Biases away from zero: no difference quotient may straddle the kink.
    inputs = shape.inputs(bias=bias)
    assert torch.autograd.gradcheck(lambda *t: rnn(list(t), nonlinearity, rad.Exact()), inputs)


@both
@every_sketch
def test_needed_gradients_decide_what_is_kept(sketch, nonlinearity):
    inputs = SIZES.inputs(torch.float32)
    T, n, h = SIZES.T, SIZES.n, SIZES.h
    states = normal(T, n, h)
    summaries = [sketch.compress(t.detach()).nbytes + 8 for t in (inputs[0], states)]
    states_stay = nonlinearity == "tanh" and not sketch.serves_factors
    slopes = sketch.compress((1 - states.square()).view(1, T * n, h)).nbytes + 8
    derivative = slopes if nonlinearity == "tanh" else -(-T * n * h // 8)
    if states_stay:
        derivative = -(4 * n * h) % 64 + 4 * (T + 1) * n * h
    for wanted in (*((i,) for i in range(6)), (2, 3), (0, 3), range(6)):
        for i, t in enumerate(inputs):
            t.requires_grad_(i in wanted)
        expected = derivative + inputs[3].nbytes + (inputs[2].nbytes if 0 in wanted else 0)
        expected += (summaries[0] if 2 in wanted else 0) + (summaries[1] if 3 in wanted and not states_stay else 0)
        assert held(lambda: rnn(inputs, nonlinearity, sketch, sequence=False)[1]) == expected
        chosen = [inputs[i] for i in wanted]
        grads = gradients(rnn(inputs, nonlinearity, sketch), chosen)
        assert [g.shape for g in grads] == [w.shape for w in chosen]


def test_context_holds_no_tensors():
    out, _ = rnn(SIZES.inputs(), "relu", rad.Project(0.5))
    assert not [value for value in vars(out.grad_fn).values() if isinstance(value, Tensor)]


@every_sketch
def test_a_single_feature_is_kept_exactly(sketch):
    # And without a warning that the budget is too small, which would be an error here.
    inputs = Sizes(d=1).inputs()
    tight = dataclasses.replace(sketch, budget=0.13)
    ours, plain = rnn(inputs, "relu", tight), oracle(inputs, "relu")
    torch.testing.assert_close(gradients(ours, inputs)[2], gradients(plain, inputs)[2])


def test_a_floor_of_the_budget_is_reported():
    with pytest.warns(rad.BudgetFloorWarning, match="of 2 features"):
        rnn(Sizes(d=2).inputs(), "relu", rad.Project(0.3))


@every_sketch
def test_no_more_than_a_chunk_is_dense(sketch, monkeypatch):
    shape = Sizes(T=256, n=32, d=3, h=32)
    dense, chunk = 4 * shape.T * shape.n * shape.h, 4 * 8 * shape.n * shape.h
    monkeypatch.setattr(scan, "_CHUNK_UNIT", 1)
    monkeypatch.setattr(scan, "_CHUNK_BYTES", chunk)
    inputs = shape.inputs(torch.float32)
    inputs[0] = inputs[0].detach()  # its gradient would be of the size of x
    tight = dataclasses.replace(sketch, budget=0.4)
    weights, results = inputs[2:], []

    def forward() -> None:
        results.append(rnn(inputs, "relu", tight, sequence=False)[1])

    def backward() -> None:
        torch.autograd.grad(results[0].sum(), weights)

    forward(), results.clear()  # compiles what is to be compiled
    saved = held(lambda: rnn(inputs, "relu", tight, sequence=False)[1])
    overhead = 6 * chunk
    assert saved < 0.5 * dense
    assert peak_bytes(forward) <= saved + overhead
    assert peak_bytes(backward) <= overhead


@both
@pytest.mark.parametrize("sketch", [rad.Exact(), rad.Project(0.5)], ids=str)
def test_views_are_taken_as_they_are(three_steps, nonlinearity, sketch):
    inputs = SIZES.inputs()
    tight = rnn(inputs, nonlinearity, sketch)
    storage = normal(SIZES.n, SIZES.T, 2 * SIZES.d, dtype=torch.float64)
    view = storage[:, :, ::2].transpose(0, 1)
    view.copy_(inputs[0].detach())
    transposed = inputs[3].detach().t().contiguous().t().requires_grad_()
    ours = [view, inputs[1], inputs[2], transposed, *inputs[4:]]
    loose = rnn(ours, nonlinearity, sketch)
    torch.testing.assert_close(loose, tight)
    torch.testing.assert_close(gradients(loose, ours[1:]), gradients(tight, inputs[1:]))


def test_exact_keeps_no_copy_of_its_input():
    x, *others = SIZES.inputs(torch.float32)
    batch_first = x.detach().transpose(0, 1).contiguous()
    states = -(4 * SIZES.n * SIZES.h) % 64 + 4 * (SIZES.T + 1) * SIZES.n * SIZES.h
    actual = held(lambda: rnn([batch_first.transpose(0, 1), *others], "relu", rad.Exact())[0])
    assert actual == batch_first.nbytes + states + others[2].nbytes


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(nonlinearity, dtype):
    inputs, doubles = SIZES.inputs(dtype), [t.detach().double().requires_grad_() for t in SIZES.inputs(dtype)]
    ours = gradients(rnn(inputs, nonlinearity, rad.Exact()), inputs)
    reference = gradients(oracle(doubles, nonlinearity), doubles)
    eps = torch.finfo(dtype).eps
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=8 * eps, atol=64 * eps)


def test_input_overwritten_afterwards():
    inputs, others = SIZES.inputs(), SIZES.inputs()
    inputs[0] = inputs[0].detach().clone()
    out = rnn(inputs, "relu", rad.Project(0.5))
    inputs[0].zero_()
    out[0].detach().zero_()
    reference = rnn(others, "relu", rad.Project(0.5))
    torch.testing.assert_close(gradients(out, inputs[1:]), gradients(reference, others[1:]))


@pytest.mark.parametrize("which", ["x", "output"])
def test_kept_values_overwritten_afterwards(which):
    inputs = SIZES.inputs()
    inputs[0] = inputs[0].detach()
    out = rnn(inputs, "relu", rad.Exact())
    overwritten = inputs[0] if which == "x" else out[0].detach()
    overwritten.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation|modified inplace"):
        gradients(out, inputs[1:])


@both
def test_double_backward_is_refused(nonlinearity):
    inputs = SIZES.inputs()
    out, _ = rnn(inputs, nonlinearity, rad.Exact())
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@every_sketch
def test_checkpoint_recomputes_with_its_own_seeds(three_steps, sketch):
    inputs, seeds = SIZES.inputs(), Seeds(5)
    outs = checkpoint(lambda x: rnn([x, *inputs[1:]], "relu", sketch, seeds), inputs[0], use_reentrant=False)
    grads = gradients(outs, inputs)
    replayed = Seeds(5)
    consistent = [gradients(rnn(inputs, "relu", sketch, replayed), inputs) for _ in range(2)]
    assert any(torch.allclose(grads[3], other[3]) for other in consistent)
    assert not torch.allclose(consistent[0][3], consistent[1][3])
