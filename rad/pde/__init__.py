"""Reaction–diffusion control with adjoints from a random summary of the fields (§5 of the paper)."""

from rad.pde.checkpointing import simulate_checkpointed
from rad.pde.problem import Fourier, Problem, Source, Target, reactor
from rad.pde.simulate import simulate

__all__ = ["Fourier", "Problem", "Source", "Target", "reactor", "simulate", "simulate_checkpointed"]
