"""Plans that follow a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rad.budget.allocate import allocate, check
from rad.budget.plan import Plan
from rad.nn import Converted, Seeds, convert, seeds

__all__ = ["Allocator"]


class Allocator:
    """Plans a model anew every so many steps, within the same budget.

    Which tensors the noise comes from changes while a model learns, and fastest in the beginning: before the first
    ``every`` steps are over, it also measures after 8, 16, 32 … of them. The noise of the plan in force takes part, so
    that one pass sees what it takes ``rad.allocate`` two to see. Call ``step`` before each training step::

        allocator = rad.Allocator(model, nbytes="50MB", every=500)
        for x, y in batches:
            allocator.step(lambda: loss_fn(model(x), y))
            loss_fn(model(x), y).backward()
            ...

    All that it does is determined by its arguments, the model and the batches: save ``state_dict()`` with model,
    optimizer and ``rad.nn.seeds(model)``, and a run goes on to the bit.

    Attributes:
        plan: The one in force; ``None`` before the first step.

    Args:
        model: Plain or converted; it is converted in place at the first step.
        nbytes: See ``rad.allocate``.
        variance: Likewise.
        every: Steps between two measurements, once so many are made.
        generator: Where the seeds of the summaries come from; see ``rad.convert``. By default a model that is converted
            goes on with its own.
        options: More of what ``rad.allocate`` takes: ``draws``, ``passes``, ``seed``.

    Raises:
        TypeError: If ``generator`` is no ``Seeds``; or as ``rad.allocate`` does.
        ValueError: If ``every`` is not a whole number of at least 1; or as ``rad.allocate`` does.
    """

    def __init__(
        self,
        model: nn.Module,
        nbytes: int | str | None = None,
        *,
        variance: float | None = None,
        every: int = 500,
        generator: Seeds | None = None,
        **options: int,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {every!r}")
        if generator is not None and not isinstance(generator, Seeds):
            raise TypeError(f"generator must be rad.nn.Seeds, which go on from plan to plan, got {generator!r}")
        check(model, nbytes, variance, **options)
        self.model, self.nbytes, self.variance, self.every = model, nbytes, variance, every
        self.options, self._generator = options, generator
        self._steps = 0
        self.plan: Plan | None = None

    def step(self, loss: Callable[[], Tensor]) -> bool:
        """Counts a step, before it is made; measures and plans anew if it is time.

        Args:
            loss: Runs a forward pass on the batch of the step, or one like it, and returns the loss.

        Returns:
            Whether there is a new plan.
        """
        doubled = self._steps >= 8 and self._steps & (self._steps - 1) == 0
        due = self._steps % self.every == 0 or (doubled and self._steps < self.every)
        if due:
            seed = self.options.get("seed", 0) + self._steps  # signs of its own for each measurement
            options = {**self.options, "seed": seed}
            plan = allocate(self.model, loss, self.nbytes, variance=self.variance, start=self.plan, **options)
            self._apply(plan)
        self._steps += 1
        return due

    def _apply(self, plan: Plan) -> None:
        self.plan = plan
        convert(self.model, plan, generator=self._seeds())

    def _seeds(self) -> Seeds | None:
        if self._generator is not None:
            return self._generator
        return seeds(self.model) if any(isinstance(m, Converted) for m in self.model.modules()) else None

    def state_dict(self) -> dict[str, Any]:
        """How far it has got; numbers and text alone."""
        return {"steps": self._steps, "plan": None if self.plan is None else self.plan.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state_dict`` returned; the model is converted by the plan that was in force.

        Raises:
            ValueError: If the plan is for another model, or none; or the state is of something else.
        """
        steps = state.get("steps") if isinstance(state, dict) and "plan" in state else None
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"state must be what state_dict returned, steps and plan, got {state!r:.60}")
        plan = None if state["plan"] is None else Plan.from_dict(state["plan"])
        if plan is not None:
            self._apply(plan)
        self._steps = steps
