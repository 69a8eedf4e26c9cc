"""Linearized computational graphs of small functions: Bauer's paths, path sampling, random matrix injection."""

from rad.graph.draw import draw
from rad.graph.graph import Graph
from rad.graph.inject import chain, inject, injected_product
from rad.graph.sample import sample_paths
from rad.graph.trace import linearize

__all__ = ["Graph", "chain", "draw", "inject", "injected_product", "linearize", "sample_paths"]
