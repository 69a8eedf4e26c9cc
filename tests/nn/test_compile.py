"""Compiled models against the same models run eagerly: the same gradients from the same draws, the same bytes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from blocks import Attention, Residual, distance, gradients
from functorch.compile import min_cut_rematerialization_partition
from sketches import normal
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop

import rad
from rad.functional import attention
from rad.measure import saved_bytes
from rad.nn import intercept
from rad.nn.seeds import Seeds, Split

# Inductor's trace and choice of what is kept without its compiler, in a second in place of many; and without its
# decompositions, so that values are the same bit for bit.
QUICK = aot_autograd(fw_compiler=boxed_nop, partition_fn=min_cut_rematerialization_partition)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def one_draw(patch: pytest.MonkeyPatch) -> None:
    """The same seed for all summaries, so that it does not matter in which order they are made."""
    patch.setattr(Seeds, "next", lambda self: torch.full((), 7, dtype=torch.int64))
    patch.setattr(Split, "next", lambda self: self._first)


# Each rule acts on a parameter of its own, whose gradient tells them apart. Shapes, then what is done.
RULES = {
    "linear": ((8, 24), lambda x: F.linear(x, x[:6] * 0.5, x[0, :6])),
    "conv1d": ((2, 6, 40), lambda x: F.conv1d(x, x[:, :, :3] * 0.5)),
    "conv2d": ((3, 4, 8, 8), lambda x: F.conv2d(x, x[:, :, :3, :3] * 0.5, padding=1)),
    "conv_transpose2d": ((4, 4, 8, 8), lambda x: F.conv_transpose2d(x, x[:, :, :2, :2] * 0.5)),
    "matmul": ((3, 10, 10), lambda x: x @ x.mT),
    "addmm": ((24, 24), lambda x: torch.addmm(x[0], x, x, beta=0.5)),
    "mul": ((20, 30), lambda x: x * (x + 1)),
    "div": ((20, 30), lambda x: x / (x.square() + 1)),
    "einsum": ((6, 40), lambda x: torch.einsum("ij,kj->ik", x, x)),
    "gelu": ((20, 30), F.gelu),
    "silu in place": ((20, 30), lambda x: F.silu(x, inplace=True)),
    "glu": ((20, 30), F.glu),
    "pow": ((20, 30), lambda x: x**3),
    "relu": ((20, 30), F.relu),
    "relu in place": ((20, 30), lambda x: F.relu(x, inplace=True)),
    "leaky relu": ((20, 30), lambda x: F.leaky_relu(x, 0.1)),
    "clamp": ((20, 30), lambda x: x.clamp(-0.5, 0.5)),
    "where": ((20, 30), lambda x: torch.where(x > 0, x, 2 * x)),
    "masked_fill": ((20, 30), lambda x: x.masked_fill(x > 0, 1.0)),
    "layer_norm": ((20, 30), lambda x: F.layer_norm(x, (30,), x[0], x[1])),
    "rms_norm": ((20, 30), lambda x: F.rms_norm(x, (30,), x[0])),
    "group_norm": ((4, 6, 20), lambda x: F.group_norm(x, 2)),
    "instance_norm": ((4, 6, 20), F.instance_norm),
    "batch_norm": ((20, 30), lambda x: F.batch_norm(x, None, None, x[0], x[1], training=True)),
    "softmax": ((20, 30), lambda x: x.softmax(-1)),
    "log_softmax": ((20, 30), lambda x: x.log_softmax(-1)),
    "attention": ((2, 4, 16, 16), lambda x: F.scaled_dot_product_attention(x, 2 * x, x, is_causal=True)),
    "cross_entropy": ((20, 30), lambda x: F.cross_entropy(x, torch.arange(20), label_smoothing=0.1)),
    "max_pool2d": ((3, 4, 8, 8), lambda x: F.max_pool2d(x, 2)),
    "avg_pool2d": ((3, 4, 8, 8), lambda x: F.avg_pool2d(x, 2)),
    # Python functions without a rule of their own: what they call is seen.
    "normalize": ((20, 30), F.normalize),
    "cosine_embedding_loss": ((20, 30), lambda x: F.cosine_embedding_loss(x, x.flip(0), torch.ones(20))),
    "kl_div": ((20, 30), lambda x: F.kl_div(x.log_softmax(-1), x.detach().flip(0).softmax(-1), reduction="batchmean")),
}


class EveryRule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of = nn.ParameterDict({name: normal(*shape, seed=i) for i, (name, (shape, _)) in enumerate(RULES.items())})

    def forward(self, scale: Tensor) -> Tensor:
        total = torch.zeros(())
        for name, (_, rule) in RULES.items():
            out = rule(self.of[name] * scale)
            # Weights without a pattern: sums of what is normalized have no gradient.
            total = total + (out * torch.arange(1, out.numel() + 1).view(out.shape).cos()).mean()
        return total.exp().sqrt()


@pytest.fixture(scope="module")
def every_rule():
    """Gradients of every rule in one graph, by parameter: exact, eager and compiled, the latter from the same draws."""
    with pytest.MonkeyPatch.context() as patch:
        one_draw(patch)
        patch.setattr(attention, "_SPANS_TRACED", attention._SPANS)  # whose draws are those of the same blocks
        stock, scale = EveryRule(), torch.tensor(1.5)
        eager = rad.convert(copy.deepcopy(stock), rad.Rounding(bits=8))
        compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=QUICK)
        found = gradients(stock, scale), gradients(eager, scale), gradients(compiled, scale)
    return [{name.rpartition("of.")[2]: g for name, g in grads.items()} for grads in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_every_rule(name, every_rule):
    exact, eager, compiled = (grads[name] for grads in every_rule)
    off = distance({"": eager}, {"": exact})
    assert off < 0.1
    # Values that differ in the last bit make some of them round to the other neighbour.
    assert distance({"": compiled}, {"": eager}) < off + 1e-5


BLOCKS = {
    "transformer": (lambda: nn.Sequential(Attention()), (4, 16, 32)),
    "residual": (lambda: nn.Sequential(Residual(), Residual()), (4, 16, 8, 8)),
    "two transformers": (lambda: nn.Sequential(Attention(), Attention()), (4, 16, 32)),
}
LONG = ("transformer", "two transformers")  # to compile
every_block = pytest.mark.parametrize(
    ("make", "shape"),
    [pytest.param(*block, id=name, marks=[pytest.mark.slow] * (name in LONG)) for name, block in BLOCKS.items()],
)


@every_block
def test_blocks_are_one_graph_that_keeps_bits(make, shape, monkeypatch):
    one_draw(monkeypatch)
    monkeypatch.setattr(attention, "_SPANS_TRACED", attention._SPANS)
    stock, x = make(), normal(*shape)
    eager = rad.convert(copy.deepcopy(stock), rad.Rounding(0.15))
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=QUICK)
    named = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x).items()}
    expected = gradients(eager, x)
    # Values that differ in the last bit make some of them round to the other neighbour.
    assert distance(named, expected) < 0.3 * distance(expected, gradients(stock, x))
    plain, few, traced = (saved_bytes(lambda m=m: m(x).square().mean()).total for m in (stock, eager, compiled))
    assert traced < 0.25 * plain
    assert traced < 1.1 * few


def test_every_step_draws_anew_and_resumes():
    model = rad.convert(Attention(), rad.Rounding(0.15), generator=torch.Generator().manual_seed(0))
    compiled, x = torch.compile(model, fullgraph=True, backend=QUICK), normal(2, 8, 32)
    seeds, state = rad.nn.seeds(model), rad.nn.seeds(model).get_state()
    first, second = gradients(compiled, x), gradients(compiled, x)
    assert distance(first, second) > 0.01
    seeds.set_state(state)
    assert distance(gradients(compiled, x), first) == 0


def test_a_model_that_was_converted_in_another_process(monkeypatch):
    packed = pickle.dumps(rad.convert(Attention(), rad.Rounding(bits=5)))
    monkeypatch.setattr(intercept, "_SKETCHES", {})
    model, x = pickle.loads(packed), normal(2, 8, 32)
    compiled = torch.compile(model, fullgraph=True, backend=QUICK)
    assert gradients(compiled, x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        # Of unit length alone, the loss would be constant.
        return F.normalize(self.head(torch.relu(self.rnn(x)[0]))).cumsum(-1)


def test_recurrent_layers_may_break_the_graph():
    stock, x = Recurrent(), normal(4, 6, 8)
    compiled = torch.compile(rad.convert(copy.deepcopy(stock), rad.Rounding(bits=12)), backend=QUICK)
    named = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x).items()}
    assert distance(named, gradients(stock, x)) < 0.01


@pytest.mark.slow
def test_inductor():
    stock, x = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8)), normal(16, 32)
    compiled = torch.compile(rad.convert(copy.deepcopy(stock), rad.Rounding(bits=12)), fullgraph=True)
    named = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x).items()}
    assert distance(named, gradients(stock, x)) < 0.01
    ledger = saved_bytes(lambda: compiled(x).square().mean())
    assert ledger.total < 0.6 * saved_bytes(lambda: stock(x).square().mean()).total
