"""What a control does, step by step, against the scheme as written on paper."""

from __future__ import annotations

import pytest
import torch
from waves import parameters, steps, wave

from rad.pde import march, trajectory


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("values", [1, 90, 10**6], ids=["a chunk a step", "chunks of three", "one chunk"])
@pytest.mark.parametrize("chosen", [range(9), [0], [8], [2, 3, 5, 6]], ids=str)
def test_every_step_is_that_of_the_scheme(monkeypatch, values, chosen):
    monkeypatch.setattr(march, "_CHUNK_VALUES", values)
    theta, problem = parameters(), wave()
    with torch.no_grad():
        expected = [step for k, step in enumerate(steps(theta, problem)) if k in chosen]
    found = trajectory(theta, problem, chosen)
    for name in ("field", "target", "control"):
        torch.testing.assert_close(getattr(found, name), torch.stack([getattr(step, name) for step in expected]))
    assert found.times.tolist() == pytest.approx([step.time for step in expected])
    assert not found.field.requires_grad


def test_it_is_in_the_precision_of_the_parameters():
    found = trajectory(parameters(dtype=torch.float32), wave(), [1])
    assert {part.dtype for part in found} == {torch.float32}


@pytest.mark.parametrize("chosen", [[3, 2], [2, 2], [-1, 2], [9], [0, 9]], ids=str)
def test_steps_out_of_order_or_range_are_refused(chosen):
    with pytest.raises(ValueError, match=r"steps must ascend within \[0, 9\), got \["):
        trajectory(parameters(), wave(), chosen)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="the 3 parameters of Wave"):
        trajectory(torch.zeros(2), wave(), [0])
