"""Random summaries of tensors. Every memory saving in this project goes through the contract in ``base``."""

from rad.sketch.base import Compressed, Sketch
from rad.sketch.exact import Exact
from rad.sketch.mixed_rounding import MixedRounding
from rad.sketch.project import Project
from rad.sketch.rounded_sample import RoundedSample
from rad.sketch.rounding import LowBitsWarning, Rounding
from rad.sketch.sample import Sample
from rad.sketch.saving import load, once, save
from rad.sketch.sparse_rounding import SparseRounding
from rad.sketch.units import BudgetFloorWarning, check_budget

__all__ = [
    "BudgetFloorWarning",
    "Compressed",
    "Exact",
    "LowBitsWarning",
    "MixedRounding",
    "Project",
    "RoundedSample",
    "Rounding",
    "Sample",
    "Sketch",
    "SparseRounding",
    "check_budget",
    "load",
    "once",
    "save",
]
