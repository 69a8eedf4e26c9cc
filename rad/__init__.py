"""Randomized automatic differentiation: unbiased gradients from a random summary of what autograd would keep."""

from rad import budget, functional, graph, measure, nn, pde, sketch
from rad.budget import AllExactWarning, Allocator, Plan, allocate
from rad.functional import operation, rule
from rad.measure import MostlyExactWarning, explain
from rad.nn import convert, revert
from rad.sketch import (
    BudgetFloorWarning,
    Exact,
    LowBitsWarning,
    MixedRounding,
    Project,
    RoundedSample,
    Rounding,
    Sample,
    Sketch,
    SparseRounding,
)

__all__ = [
    "AllExactWarning",
    "Allocator",
    "BudgetFloorWarning",
    "Exact",
    "MostlyExactWarning",
    "LowBitsWarning",
    "MixedRounding",
    "Plan",
    "Project",
    "RoundedSample",
    "Rounding",
    "Sample",
    "Sketch",
    "SparseRounding",
    "allocate",
    "budget",
    "convert",
    "explain",
    "functional",
    "graph",
    "measure",
    "nn",
    "operation",
    "pde",
    "revert",
    "rule",
    "sketch",
]
__version__ = "0.1.0"
