"""Random summaries of tensors. Every memory saving in this project goes through the contract in ``base``."""

from rad.sketch.base import BudgetFloorWarning, Compressed, Sketch, check_budget
from rad.sketch.exact import Exact
from rad.sketch.norm_sample import NormSample
from rad.sketch.project import Project
from rad.sketch.rounded_sample import RoundedSample
from rad.sketch.rounding import Rounding
from rad.sketch.sample import Sample, Stratified
from rad.sketch.saving import load, save
from rad.sketch.sparse_project import SparseProject

__all__ = [
    "BudgetFloorWarning",
    "Compressed",
    "Exact",
    "NormSample",
    "Project",
    "RoundedSample",
    "Rounding",
    "Sample",
    "Sketch",
    "SparseProject",
    "Stratified",
    "check_budget",
    "load",
    "save",
]
