"""Bias and variance of a gradient estimate, draw by draw and without keeping the draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rad.nn.convert import check_module

__all__ = ["GradientNoise", "Moments", "gradient_noise", "gradients", "hessian_product", "scalar", "trainable"]

Gradient = Mapping[str, Tensor]


@dataclass(frozen=True)
class Moments:
    """Moments of one layer's gradient, or of all, each summed over the entries.

    Attributes:
        norm2: Squared norm of the exact gradient, or of the mean of the draws where no exact one was given.
        variance: Estimate of ``E‖ĝ − E ĝ‖²``.
        variance_error: Standard error of ``variance``.
        bias: ``‖mean of the draws − g‖``; NaN where no exact gradient was given.
        bias_error: What ``bias`` comes to, root mean square, if there is none: ``√(variance / draws)``.
    """

    norm2: float
    variance: float
    variance_error: float
    bias: float
    bias_error: float

    def relative_to(self, other: Moments) -> tuple[float, float]:
        """``variance`` in units of another one's, with the standard error of the ratio (to first order)."""
        if other.variance == 0:
            return math.nan, math.nan
        ratio = self.variance / other.variance
        spread = math.hypot(self.variance_error / other.variance, ratio * other.variance_error / other.variance)
        return ratio, spread


@dataclass(frozen=True)
class GradientNoise:
    """What ``gradient_noise`` found. ``str(noise)`` is a table by layer.

    Attributes:
        draws: Number of draws.
        total: Of the whole gradient.
        layers: Of each layer's, by name.
        curved: Estimate of ``tr HΣ = E (ĝ − E ĝ)ᵀ H (ĝ − E ĝ)``, the noise that counts: a step ``w − ηĝ`` ends with a
            loss that is higher than that of ``w − η E ĝ`` by ``½η² tr HΣ`` in expectation, to second order. NaN where
            no Hessian was given.
        curved_error: Standard error of ``curved``.
    """

    draws: int
    total: Moments
    layers: dict[str, Moments]
    curved: float = math.nan
    curved_error: float = math.nan

    def __str__(self) -> str:
        rows = [("layer", "‖g‖²", "variance", "÷ ‖g‖²", "bias", "expected of none")]
        for name, m in {**self.layers, "total": self.total}.items():
            relative = f"{m.variance / m.norm2:.3g}" if m.norm2 else "–"
            spread = f"{m.variance:.4g} ± {m.variance_error:.1g}"
            rows.append((name, f"{m.norm2:.4g}", spread, relative, f"{m.bias:.3g}", f"{m.bias_error:.3g}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines = [lines[0], "-" * len(lines[0]), *lines[1:], f"{self.draws} draws; ± is a standard error"]
        if not math.isnan(self.curved):
            lines.append(f"weighted by curvature (tr HΣ): {self.curved:.4g} ± {self.curved_error:.1g}")
        return "\n".join(lines)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that require a gradient, by name.

    Raises:
        ValueError: If there are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(
            "no parameter of the model requires a gradient, so there is none to measure; call requires_grad_() on "
            "those to train, or give the module that holds them"
        )
    return found


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """One gradient of a model, by parameter; ``.grad`` fields stay as they are.

    Args:
        model: Plain or converted.
        loss: Runs the model and returns a scalar, such as ``lambda: loss_fn(model(x), y)``.

    Returns:
        Gradients of the parameters that require one, zeros for those that ``loss`` does not depend on.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``loss`` returns anything but a scalar that requires a gradient, or no parameter requires one.
    """
    check_module(model)
    parameters = trainable(model)
    grads = torch.autograd.grad(scalar(loss()), list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), grads, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def hessian_product(model: nn.Module, loss: Callable[[], Tensor], vector: Gradient) -> dict[str, Tensor]:
    """The Hessian of a loss times a vector, by two backward passes; ``.grad`` fields stay as they are.

    Args:
        model: Plain: sketches and other layers converted have no second derivatives.
        loss: Runs the model and returns a scalar.
        vector: By parameter, as from `gradients`.

    Returns:
        By parameter, zeros for those on which the loss does not depend, or only linearly.

    Raises:
        RuntimeError: If some operation of the model has no second derivative.
        TypeError: If ``model`` is not a module.
        ValueError: If ``loss`` returns anything but a scalar that requires a gradient, no parameter requires one, or
            ``vector`` is none of its.
    """
    check_module(model)
    parameters = trainable(model)
    entries = dict(vector) if isinstance(vector, Mapping) else {}
    strange = [name for name, p in parameters.items() if getattr(entries.get(name), "shape", None) != p.shape]
    if strange:
        raise ValueError(f"vector must hold a tensor of the shape of each parameter by name; {strange[0]} has none")
    # Fused attention, and recurrent nets of cuDNN, have no second derivatives.
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        grads = torch.autograd.grad(scalar(loss()), list(parameters.values()), create_graph=True, allow_unused=True)
        pairs = [(g, vector[name].to(g)) for name, g in zip(parameters, grads, strict=True) if g is not None]
        pairs = [(g, v) for g, v in pairs if g.requires_grad]
        found = torch.autograd.grad(
            [g for g, _ in pairs], list(parameters.values()), [v for _, v in pairs], allow_unused=True
        )
    filled = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(p) if h is None else h for (name, p), h in filled}


def gradient_noise(
    draw: Callable[[], Gradient],
    draws: int,
    exact: Gradient | None = None,
    curvature: Callable[[Gradient], Gradient] | None = None,
) -> GradientNoise:
    """Measures bias and variance of a random gradient, and its variance weighted by the curvature of a loss.

    With a converted model and one batch it is the noise that a sketch adds; with the exact gradients of random
    batches, minibatch noise. The ratio of both is ``a.total.relative_to(b.total)``::

        added = gradient_noise(lambda: gradients(converted, lambda: loss_fn(converted(x), y)), 100, exact)
        batches = gradient_noise(lambda: gradients(plain, lambda: loss_fn(*next(batches))), 100)

    Memory does not grow with ``draws``: mean and squared deviations are updated as in Welford's method. His increments
    ``(t − 1)/t ‖ĝ_t − mean of those before‖²`` have the variance as expectation, each of them, so that its standard
    error is that of their mean.

    Args:
        draw: Returns one independent draw of the gradient, by parameter name (``layer.weight``).
        draws: How many to take, at least 3.
        exact: What its expectation should be.
        curvature: From a vector to the Hessian times that vector, such as ``partial(hessian_product, plain, loss)``.

    Returns:
        Moments of the whole gradient and of each layer: of parameters that share all of the name but its last part.

    Raises:
        TypeError: If a gradient is anything but tensors by name.
        ValueError: If ``draws`` is less than 3, a gradient has no entries or the names of ``exact`` are others.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 3:
        raise ValueError(
            f"draws must be a whole number of at least 3, got {draws!r}; 100 give the variance to about 15 %"
        )
    mean: dict[str, Tensor] = {}
    increments: dict[str, list[float]] = {}
    curved: list[float] = []
    for t in range(1, draws + 1):
        gradient = draw()
        if not isinstance(gradient, Mapping) or not all(isinstance(g, Tensor) for g in gradient.values()):
            raise TypeError(f"draw must return tensors by name, as rad.measure.gradients does, got {gradient!r:.60}")
        if not gradient:
            raise ValueError("draw returned a gradient without entries; does any parameter require grad?")
        if t == 1:
            mean = {name: g.detach().double().clone() for name, g in gradient.items()}
            increments = {name: [] for name in mean}
            continue
        differences = {name: g.detach().double() - mean[name] for name, g in gradient.items()}
        for name, difference in differences.items():
            increments[name].append((t - 1) / t * difference.square().sum().item())
            mean[name] += difference / t
        if curvature is not None:
            product = curvature({name: d.to(gradient[name].dtype) for name, d in differences.items()})
            curved.append((t - 1) / t * sum((d * product[name]).sum().item() for name, d in differences.items()))
    if exact is not None and exact.keys() != mean.keys():
        raise ValueError(f"exact has the entries {', '.join(exact)}, but the draws have {', '.join(mean)}")
    norms = {name: (mean if exact is None else exact)[name].double().square().sum().item() for name in mean}
    biases = {
        name: math.nan if exact is None else (mean[name] - exact[name].double()).square().sum().item() for name in mean
    }

    def moments(names: list[str]) -> Moments:
        sums = torch.tensor([increments[name] for name in names], dtype=torch.float64).sum(0)
        variance = sums.mean().item()
        return Moments(
            norm2=sum(norms[name] for name in names),
            variance=variance,
            variance_error=sums.std().item() / len(sums) ** 0.5,
            bias=math.sqrt(sum(biases[name] for name in names)),
            bias_error=math.sqrt(variance / draws),
        )

    layers: dict[str, list[str]] = {}
    for name in mean:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    by_layer = {layer: moments(names) for layer, names in layers.items()}
    weighted = torch.tensor(curved, dtype=torch.float64)
    found = (weighted.mean().item(), weighted.std().item() / len(weighted) ** 0.5) if curved else ()
    return GradientNoise(draws, moments(list(mean)), by_layer, *found)


def scalar(loss: object) -> Tensor:
    """What a loss function returned, if it can be differentiated.

    Raises:
        ValueError: If it is anything but one real number that requires a gradient.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point() and loss.requires_grad:
        return loss
    got = type(loss).__name__
    if isinstance(loss, Tensor):
        got = f"{loss.dtype} {list(loss.shape)}" + ("" if loss.requires_grad else " without one")
    raise ValueError(f"loss must return one real number that requires a gradient, got {got}")
