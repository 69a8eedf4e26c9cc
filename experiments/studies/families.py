"""Graphs of which it is known how the variance of a sampled gradient grows with their depth."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.graph import Graph

__all__ = ["independent", "interleaved"]


def independent(width: int, depth: int, generator: torch.Generator) -> Graph:
    """``width`` inputs that meet in one orthogonal layer, then ``width`` separate chains into one output."""
    chains = [torch.diag(_signs(width, generator)) for _ in range(depth - 1)]
    return _layered([_orthogonal(width, generator), *chains])


def interleaved(width: int, depth: int, generator: torch.Generator) -> Graph:
    """``depth`` orthogonal layers, each vertex with an edge to all of the next layer, into one output."""
    return _layered([_orthogonal(width, generator) for _ in range(depth)])


def _layered(jacobians: list[Tensor]) -> Graph:
    width = len(jacobians[0])
    places = torch.arange(width)
    source, target, derivative = [], [], []
    for layer, jacobian in enumerate(jacobians):
        into, out = torch.nonzero(jacobian, as_tuple=True)
        source.append(places[out] + layer * width)
        target.append(places[into] + (layer + 1) * width)
        derivative.append(jacobian[into, out])
    last = len(jacobians) * width
    source.append(places + last)
    target.append(torch.full((width,), last + width))
    derivative.append(torch.full((width,), width**-0.5, dtype=torch.float64))
    edges = (torch.cat(parts).numpy() for parts in (source, target, derivative))
    return Graph.build(*edges, inputs=range(width), outputs=[last + width])


def _orthogonal(width: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def _signs(width: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (width,), generator=generator).double() * 2 - 1
