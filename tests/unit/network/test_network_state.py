"""What SQLite raises, told as the network's own errors."""

from pathlib import Path

import pytest

from sampan.errors import Corrupt, Exhausted, SampanError
from sampan.network.state import Owner, State


def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    state = State(str(tmp_path))
    owner = Owner("container", "eth0", "x" * 100_000)
    pages = state.database.execute("PRAGMA page_count").fetchone()[0]
    state.database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exhausted, match="no space is left"):
        state.record_attachment(owner, 0)
    state.database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert not state.attachments()
    state.record_attachment(owner, 0)
    assert [each.container for each in state.attachments()] == ["container"]
    state.close()


def test_a_record_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "network.db").write_bytes(b"no database" * 1000)
    with pytest.raises(Corrupt, match="network's record"):
        State(str(tmp_path))


def test_a_row_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    state = State(str(tmp_path))
    rows = state.database.execute("SELECT json(value) FROM (SELECT '1' AS value UNION ALL SELECT '[')")
    with pytest.raises(SampanError, match="malformed JSON"):
        list(rows)
    state.close()
