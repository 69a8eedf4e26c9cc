"""Where a script's file is to be written is looked at before it works, and left as it was."""

from __future__ import annotations

import pytest

from experiments.errors import UserError
from experiments.show.tables import prepare, publish


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


def test_what_cannot_be_written_in_the_end_has_been_printed(tmp_path, capsys):
    (tmp_path / "table.md").symlink_to("/dev/full")
    with pytest.raises(
        SystemExit, match=r"table\.md cannot be written \(No space left on device\); what was found stand"
    ):
        publish("what was found", tmp_path / "table.md")
    assert capsys.readouterr().out == "what was found\n"
