"""The README's Python is run as printed, block after block, and its commands name runs that there are."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType

from experiments.runs.configs import composed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_START = r"^ +(?:\w+=\S+ )?(?:python|torchrun --\S+) (?:run|scripts/tune)\.py "
COMMANDS = re.findall(_START + r"(.*?)(?: {2,}#.*)?$", README, re.MULTILINE)


@pytest.mark.slow
def test_python_runs_as_printed(capsys):
    mpl.use("agg")
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that is shown as the way to do it may warn
        for block in blocks:
            line = README[: README.index(block)].count("\n")
            exec(compile("\n" * line + block, "README.md", "exec"), names)  # errors name the line
    assert "bytes" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_settings_that_there_are(command):
    words = [word for word in shlex.split(command) if "=" in word and not word.startswith("-")]
    overrides = []
    for override in OverridesParser.create().parse_overrides(words):
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            continue
        swept = override.is_sweep_override()
        value = next(iter(override.sweep_string_iterator())) if swept else override.get_value_element_as_str()
        overrides.append(f"{override.get_key_element()}={value}")
    assert composed(overrides)
