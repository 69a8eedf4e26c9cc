"""Where a script's file is to be written is looked at before it works, and left as it was."""

from __future__ import annotations

import pytest

from experiments.errors import UserError
from experiments.show.tables import prepare


def test_a_file_that_can_be_written_is_left_as_it_was(tmp_path):
    prepare(None)
    prepare(tmp_path / "new" / "table.md")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "old.md").write_text("found before")
    prepare(tmp_path / "old.md")
    assert (tmp_path / "old.md").read_text() == "found before"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="must name a file, but .* is a folder"):
        prepare(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        prepare(tmp_path / "file" / "table.md")
