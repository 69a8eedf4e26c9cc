"""The tool that tries faults, on a project of two functions; and that the project's own list can be tried."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.errors import UserError
from scripts import faults

CODE = """
def double(x):
    return 2 * x

def count(x):
    n = 0
    while n < x:
        n += 1
    return n
"""
TESTS = """
from code_ import count, double

def test_double():
    assert double(3) == 6

def test_count():
    assert count(3) == 3
"""
TRIPLED = {"what": "tripled", "old": "2 * x", "new": "3 * x"}
HARMLESS = {"what": "exchanged", "old": "2 * x", "new": "x * 2"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project under git, with a file that git ignores; its pytest starts without plugins, which is faster."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    files = {"code_.py": CODE, "test_code.py": TESTS, ".gitignore": "ignored.py\n", "ignored.py": "raise OSError\n"}
    root = tmp_path / "project"
    root.mkdir()
    for name, text in files.items():
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", root], check=True)
    return root


def listed(root: Path, *changes: dict, **group: object) -> Path:
    path = root.parent / "faults.yaml"
    path.write_text(yaml.safe_dump([{"file": "code_.py", "tests": ["test_code.py"], "faults": [*changes], **group}]))
    return path


def test_it_tells_which_faults_are_found_and_by_which_test(project, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    outcomes = [*faults.tried(faults.read(listed(project, HARMLESS, TRIPLED), project), 2, project)]
    assert [(o.fault.what, o.found, o.by) for o in outcomes] == [
        ("exchanged", False, ""),
        ("tripled", True, "test_code.py::test_double"),
    ]
    assert (project / "code_.py").read_text() == CODE


def test_tests_that_fail_anyway_are_not_tried(project):
    (project / "test_code.py").write_text(TESTS.replace("== 6", "== 7"))
    with pytest.raises(UserError, match="the tests fail without any fault; mend them first:(.|\n)*test_double"):
        [*faults.tried(faults.read(listed(project, TRIPLED), project), 1, project)]


def test_an_endless_loop_comes_to_an_end(project):
    (project / "code_.py").write_text(CODE.replace("n += 1", "n += 0"))
    assert faults._pytest(project, ["test_code.py"], deadline=1) == (None, "")


@pytest.mark.parametrize(
    ("status", "said", "found", "by"),
    [
        (0, "2 passed", False, ""),
        (1, "FAILED test_code.py::test_x[a] - assert 1\n1 failed", True, "test_code.py::test_x[a]"),
        (2, "ERROR test_code.py\n1 error", True, "test_code.py"),
        (None, "", True, "no end"),
        (-6, "Fatal Python error", True, "exit status -6"),
    ],
)
def test_what_an_exit_status_means(project, monkeypatch, status, said, found, by):
    monkeypatch.setattr(faults, "_pytest", lambda *args: (status, said))
    (fault,) = faults.read(listed(project, TRIPLED), project)
    outcome = faults._try(fault, project, project.parent / "copy", 1)
    assert (outcome.found, outcome.by) == (found, by)
    assert not (project.parent / "copy").exists()


@pytest.mark.parametrize("status", [3, 4, 5])
def test_no_tests_find_nothing(project, monkeypatch, status):
    monkeypatch.setattr(faults, "_pytest", lambda *args: (status, "no tests ran"))
    with pytest.raises(UserError, match="its tests cannot be run; correct the list:\nno tests ran"):
        faults._try(faults.read(listed(project, TRIPLED), project)[0], project, project.parent / "copy", 1)


@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ({}, {"old": "return"}, "'return' must occur once in that file, but does 2 times"),
        ({}, {"old": "nowhere"}, "'nowhere' must occur once in that file, but does 0 times"),
        ({}, {"new": "2 * x"}, "nothing is changed"),
        ({}, {"why": "it is late"}, "is no list of faults"),
        ({"file": "other.py"}, {}, "there is no other.py"),
        ({"tests": ["test_other.py::test_x"]}, {}, "there is no test_other.py"),
        ({"tests": None}, {}, "is no list of faults"),
    ],
)
def test_mistakes_in_a_list_are_named(project, group, change, said):
    with pytest.raises(UserError, match=said):
        faults.read(listed(project, TRIPLED | change, **group), project)
    with pytest.raises(UserError, match=r"nowhere\.yaml is no list of faults"):
        faults.read(project / "nowhere.yaml", project)


def test_a_folder_is_all_of_its_lists(project):
    listed(project, TRIPLED).rename(project.parent / "b.yaml")
    listed(project, HARMLESS).rename(project.parent / "a.yaml")
    assert [fault.what for fault in faults.read(project.parent, project)] == ["exchanged", "tripled"]


def test_the_lists_of_this_project_fit_it():
    listed_ = faults.read(faults.ROOT / "tests" / "faults")
    assert len(listed_) > 400
    assert len({(fault.file, fault.old, fault.new) for fault in listed_}) == len(listed_)
