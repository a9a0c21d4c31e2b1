"""Append-only segments: only what was committed counts."""

from pathlib import Path

import pytest

from consortium.storage.segments import End, SegmentError, Segments


def _written(folder: Path, *records: bytes, limit_bytes: int = 1000) -> tuple[End, list]:
    segments = Segments(folder, End(), limit_bytes=limit_bytes)
    locations = [segments.append(record) for record in records]
    segments.flush()
    segments.close()
    return segments.end, locations


def test_records_come_back(tmp_path: Path) -> None:
    records = [bytes([number]) * (number * 30) for number in range(1, 30)] + [b""]
    end, locations = _written(tmp_path, *records)
    assert end.segment > 3
    segments = Segments(tmp_path, end, limit_bytes=1000)
    assert [segments.read(location) for location in locations] == records
    more = segments.append(b"more")
    assert segments.read(more) == b"more"
    segments.close()


def test_a_record_longer_than_a_segment_has_one_to_itself(tmp_path: Path) -> None:
    end, locations = _written(tmp_path, b"small", b"L" * 5000, b"small too")
    segments = Segments(tmp_path, end)
    assert [segments.read(one) for one in locations] == [b"small", b"L" * 5000, b"small too"]
    assert [one.segment for one in locations] == [0, 1, 2]
    segments.close()


@pytest.mark.parametrize("cut", [0, 1, 7, 60])
def test_a_torn_tail_is_cut_off(tmp_path: Path, cut: int) -> None:
    """A crash between writing a record and committing its end."""
    segments = Segments(tmp_path, End(), limit_bytes=1000)
    first = segments.append(b"first")
    committed = segments.end
    for _ in range(20):
        segments.append(b"never committed" * 10)
    segments.close()
    if cut:  # and not all of it had reached the disk
        with (tmp_path / "000000.segment").open("r+b") as file:
            file.truncate(committed.length + cut)
    segments = Segments(tmp_path, committed, limit_bytes=1000)
    assert segments.end == committed
    assert segments.read(first) == b"first"
    assert (tmp_path / "000000.segment").stat().st_size == committed.length
    assert not (tmp_path / "000001.segment").exists()
    second = segments.append(b"second")
    assert segments.read(second) == b"second"
    segments.close()


def test_a_failed_commit_is_rewound(tmp_path: Path) -> None:
    segments = Segments(tmp_path, End(), limit_bytes=100)
    first = segments.append(b"first")
    end = segments.end
    segments.append(b"x" * 200)
    segments.rewind(end)
    assert segments.end == end
    second = segments.append(b"second")
    assert (segments.read(first), segments.read(second)) == (b"first", b"second")
    assert second.segment == 0
    segments.close()


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    end, (location,) = _written(tmp_path, b"precious")
    path = tmp_path / "000000.segment"
    data = bytearray(path.read_bytes())
    data[location.offset] ^= 1
    path.write_bytes(data)
    segments = Segments(tmp_path, end)
    with pytest.raises(SegmentError, match=r"000000\.segment is damaged at byte 16"):
        segments.read(location)
    segments.close()


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    end, locations = _written(tmp_path, b"one" * 200, b"two" * 200)
    segments = Segments(tmp_path, end)
    (tmp_path / "000000.segment").rename(tmp_path / "archived")
    with pytest.raises(SegmentError, match="If it was archived, bring it back"):
        segments.read(locations[0])
    assert segments.read(locations[1]) == b"two" * 200
    segments.close()
    with (tmp_path / "000001.segment").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(SegmentError, match=r"has 20 bytes, but \d+ were committed"):
        Segments(tmp_path, end)


def test_a_newer_segment_format_is_refused(tmp_path: Path) -> None:
    end, (location,) = _written(tmp_path, b"record")
    path = tmp_path / "000000.segment"
    path.write_bytes(b"GLSEG\x00\x00\x02" + path.read_bytes()[8:])
    segments = Segments(tmp_path, end)
    with pytest.raises(SegmentError, match="of a newer format"):
        segments.read(location)
    segments.close()
