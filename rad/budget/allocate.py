"""What to keep of each tensor of a model, so that the variance of the gradient is least within so many bytes."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rad.budget.options import Choices
from rad.budget.plan import Plan, fingerprint
from rad.budget.probe import contributions
from rad.budget.size import bytes_of, shown
from rad.measure import gradients, saved_bytes
from rad.measure.explain import undisturbed
from rad.nn import Seeds
from rad.nn.convert import check_module, for_a_while
from rad.sketch import Exact, Sketch

__all__ = ["AllExactWarning", "allocate"]


class AllExactWarning(UserWarning):
    """A budget is larger than all that exact gradients hold."""


def allocate(
    model: nn.Module,
    loss: Callable[[], Tensor],
    nbytes: int | str | None = None,
    *,
    variance: float | None = None,
    batches: int = 1,
    draws: int = 1,
    passes: int | None = None,
    seed: int = 0,
    start: Plan | None = None,
) -> Plan:
    """Finds how many bits each kept tensor should get, and of how many of its elements.

    A recorded backward pass, differentiated once more, tells what the noise of every kept tensor adds to the variance
    of the gradient (``rad.budget.probe``), and all bytes. The variance falls with ``(2^bits − 1)²`` while bytes grow
    with the bits; keeping one element in 2, 4, 8 or 16 takes less than one bit (``rad.SparseRounding``), wherever no
    two elements of a tensor meet in a product. So the best choice is a knapsack (``rad.budget.choose``); what it leaves
    over gives a part of one tensor another bit (``rad.MixedRounding``). The model is not changed::

        plan = rad.allocate(model, lambda: loss_fn(model(x), y), nbytes="50MB")
        print(plan)
        rad.convert(model, plan)

    Measure at a state that is typical of training: shares differ between initial weights and later ones, and
    ``rad.Allocator`` follows them.

    Args:
        model: Plain or converted, with the loss in it or not; what is outside of it stays exact and counts.
        loss: Runs a forward pass on a batch of the usual size and returns the loss. It is called
            once for each pass and batch, and once more where everything might be kept exactly; each call needs as much
            memory as exact gradients do, and more.
        nbytes: What autograd may hold between forward and backward pass, parameters apart: a number or a size such as
            ``"50MB"`` or ``"1.5GiB"``.
        variance: In place of ``nbytes``: what all summaries together may add to the variance of the gradient, summed
            over its entries, in units of its squared norm; the plan then takes the fewest bytes.
        batches: How many calls of ``loss`` the measurement is averaged over, where it draws a batch anew each time.
        draws: Of random signs for each; one is good to some per cent of the whole variance of a net of many layers.
        passes: How often to measure: each time but the first with the noise of the plan before, so that what noise does
            to noise counts as well; 2 by default, and 1 after a ``start``. One pass sees no more of that than its first
            order, and promises too little variance where that is most of it: with fewer than about two bits a value,
            and in nets that spend nearly all of theirs on a few tensors (vision transformers).
        seed: Of the signs. The global generator, and that of the model's summaries, are left as they were.
        start: A plan for this model that the new one is thought to be close to, the one in force say. The first pass
            then counts its noise, as a second pass would; ``loss`` is called once more for each batch.

    Returns:
        The plan, which holds no more than ``nbytes``.

    Raises:
        TypeError: If ``model`` is not a module, or ``nbytes`` no size.
        ValueError: If neither or both of ``nbytes`` and ``variance`` are given, if they lie outside of what is
            possible, or if the gradient cannot be measured, as where no parameter requires one.
    """
    limit = check(model, nbytes, variance, batches, draws, passes, seed)
    if start is not None:
        start.check(model)
    # A compiled model runs as it was written, for its graphs know nothing of all this.
    with undisturbed(model), torch.compiler.set_stance("force_eager"):
        found = contributions(model, loss, batches, draws, seed, _sketches(start))
        if start is not None:
            found = replace(found, norm2=_norm2(model, loss, batches))
        choices = Choices(found)
        if limit < choices.least:
            raise ValueError(
                f"nbytes is {int(limit):,}, but what must be kept exactly and the coarsest summaries of the rest take "
                f"{choices.least:,} bytes ({shown(choices.least)}), the least that is possible"
            )
        if math.isfinite(limit) and limit >= choices.fine and (exact := _all_exact(model, loss, limit)) is not None:
            return exact
        plan = choices.plan(model, limit, variance)
        if passes is None:
            passes = 2 if start is None else 1
        for i in range(1, passes):
            again = contributions(model, loss, batches, draws, seed + i, _sketches(plan))
            choices = Choices(replace(again, norm2=found.norm2, held=found.held))
            plan = choices.plan(model, limit, variance)
        return plan


def check(
    model: nn.Module,
    nbytes: int | str | None,
    variance: float | None,
    batches: int = 1,
    draws: int = 1,
    passes: int | None = None,
    seed: int = 0,
) -> float:
    """Refuses arguments of ``allocate`` before any work; returns the limit of bytes, infinite if there is none.

    Raises:
        TypeError, ValueError: See ``allocate``.
    """
    check_module(model)
    if (nbytes is None) == (variance is None):
        raise ValueError(f"either nbytes must be given or variance, got nbytes={nbytes!r} and variance={variance!r}")
    counts = {"batches": (batches, 1), "draws": (draws, 1), "passes": (1 if passes is None else passes, 1)}
    for name, (value, least) in {**counts, "seed": (seed, 0)}.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
            raise ValueError(f"{name} must be a whole number from {least} to 2⁶² − 1, got {value!r}")
    if variance is not None and (
        isinstance(variance, bool) or not isinstance(variance, numbers.Real) or not 0 < variance <= sys.float_info.max
    ):
        raise ValueError(
            f"variance must be a positive number, in units of the gradient's squared norm, got {variance!r:.60}"
        )
    return math.inf if nbytes is None else bytes_of(nbytes)


def _sketches(plan: Plan | None) -> Callable[[str], Sketch | None] | None:
    """What a plan keeps of each place."""
    return None if plan is None else {item.place: item.sketch for item in plan.items}.get


def _norm2(model: nn.Module, loss: Callable[[], Tensor], batches: int) -> float:
    """``‖g‖²`` of the exact gradient."""
    with for_a_while(model, Exact(), generator=Seeds(0)):
        found = [gradients(model, loss).values() for _ in range(batches)]
    return sum(g.double().square().sum().item() for each in found for g in each) / batches


def _all_exact(model: nn.Module, loss: Callable[[], Tensor], limit: float) -> Plan | None:
    """The plan that keeps everything exactly, if that fits."""
    with for_a_while(model, Exact(), generator=Seeds(0)):
        exact = saved_bytes(loss).total
    if limit < exact:
        return None
    warnings.warn(
        f"nbytes is {int(limit):,}, but exact gradients hold no more than {exact:,} bytes; everything is kept exactly",
        AllExactWarning,
        stacklevel=3,
    )
    return Plan((), exact, 0.0, type(model).__name__, fingerprint(model), exact=True)
