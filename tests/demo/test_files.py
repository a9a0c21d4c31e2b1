"""Whole files or none."""

from __future__ import annotations

import stat
from pathlib import Path

from demo.files import write_atomically


def test_content_and_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "secret"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".secret.new").write_text("left over by a crash")
    (tmp_path / "a" / ".secret.new").chmod(0o644)
    write_atomically(path, "one", mode=0o600)
    write_atomically(path, b"two", mode=0o600)
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret"]
