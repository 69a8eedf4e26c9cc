"""Fixtures for all tests."""

from __future__ import annotations

from importlib import import_module

import pytest
from hypothesis import HealthCheck, settings

# The process that gives out the tests needs nothing of torch until they begin: fixtures import it.

# Examples are the same in every run, and a fixture may hold for all examples of a test: none of ours keeps state.
settings.register_profile(
    "rad",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("rad")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished() -> None:
    """Imports what warnings are classes of, which threads that wait for the workers would do at the same time."""
    import_module("rad.measure")


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    from rad.nn.seeds import _starts

    torch.default_generator.manual_seed(0)  # torch.manual_seed looks at all devices, for milliseconds
    _starts.manual_seed(0)  # else the draws of a test would depend on how many conversions there were before it


@pytest.fixture(params=["compiled", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled loops and again with their plain counterparts."""
    from rad.sketch import kernels as compiled_loops

    if request.param == "compiled" and compiled_loops.numba is None:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(compiled_loops, "enabled", request.param == "compiled")
    return request.param
