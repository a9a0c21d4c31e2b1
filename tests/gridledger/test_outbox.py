"""The outbox survives a crash at any point: it is opened anew after each step."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from custom_components.gridledger.outbox import Outbox, OutboxError


class _Opened(Outbox):
    """Closes what is no longer looked at."""

    def __del__(self) -> None:
        self.close()


def reading(start: int) -> dict[str, str]:
    return {"interval_start": str(start), "import_wh": "7", "quality": "measured"}


def states(outbox: Outbox) -> list[str]:
    return [stored.state for stored in reversed(outbox.recent(100))]


def test_readable_by_its_owner_alone(tmp_path: Path) -> None:
    Outbox(tmp_path / "o.db").close()
    assert stat.S_IMODE((tmp_path / "o.db").stat().st_mode) == 0o600


def test_life_of_a_reading(tmp_path: Path) -> None:
    path = tmp_path / "o.db"

    def opened() -> _Opened:
        return _Opened(path)

    opened().append([reading(900), reading(1800)], {"cut_at": 2700})
    assert states(opened()) == ["queued", "queued"]
    assert opened().fact("meter") == {"cut_at": 2700}
    opened().store_envelope("tx1", b"envelope", [900, 1800])
    assert states(opened()) == ["sent", "sent"]
    assert [(e.transaction_id, e.envelope) for e in opened().undecided()] == [("tx1", b"envelope")]
    assert opened().queued(10) == []
    assert opened().summary().queued == 2
    opened().decide("tx1", committed=True)
    assert states(opened()) == ["committed", "committed"]
    assert opened().undecided() == []
    assert opened().summary().last_committed == 1800
    assert opened().recent(1)[0].transaction_id == "tx1"


def test_an_invalid_transaction_gives_its_readings_back(tmp_path: Path) -> None:
    outbox = _Opened(tmp_path / "o.db")
    outbox.append([reading(900)], {})
    outbox.store_envelope("tx1", b"e", [900])
    outbox.decide("tx1", committed=False)
    assert [stored.interval_start for stored in outbox.queued(10)] == [900]


def test_what_fails_leaves_nothing_half_done(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.append([reading(900), reading(1800)], {"cut_at": 2700})
    outbox.store_envelope("tx1", b"e", [900])
    with pytest.raises(sqlite3.IntegrityError):
        outbox.store_envelope("tx1", b"another", [1800])
    assert states(outbox) == ["sent", "queued"]
    outbox.decide("tx1", committed=True)  # and the next one goes through
    assert states(outbox) == ["committed", "queued"]


def test_an_interval_is_stored_once(tmp_path: Path) -> None:
    outbox = _Opened(tmp_path / "o.db")
    outbox.append([reading(900)], {})
    outbox.store_envelope("tx1", b"e", [900])
    outbox.append([{**reading(900), "import_wh": "8"}], {})
    [stored] = outbox.recent(10)
    assert (stored.state, stored.fields["import_wh"]) == ("sent", "7")


def test_refused_readings_are_not_sent_again(tmp_path: Path) -> None:
    outbox = _Opened(tmp_path / "o.db")
    outbox.append([reading(900), reading(1800)], {})
    outbox.refuse(900, "already has a different reading")
    assert [stored.interval_start for stored in outbox.queued(10)] == [1800]
    assert outbox.summary().refused == 1


def test_old_readings_go_but_never_one_on_its_way(tmp_path: Path) -> None:
    outbox = _Opened(tmp_path / "o.db")
    outbox.append([reading(900 * i) for i in range(1, 5)], {})
    outbox.store_envelope("tx1", b"e", [900])
    outbox.store_envelope("tx2", b"e", [1800])
    outbox.decide("tx2", committed=True)
    assert outbox.prune(4 * 900) == 1
    assert [stored.interval_start for stored in outbox.recent(10)] == [3600, 900]


def test_cutting_and_advancing_are_one_step(tmp_path: Path) -> None:
    outbox = _Opened(tmp_path / "o.db")
    outbox.append([reading(900)], {"cut_at": 1800})
    with pytest.raises(TypeError):
        outbox.append([reading(1800)], {"cut_at": object()})
    assert states(outbox) == ["queued"]
    assert outbox.fact("meter") == {"cut_at": 1800}


def test_killed_while_writing(tmp_path: Path) -> None:
    """After `kill -9`, what was reported as stored is there, in order and once."""
    path = tmp_path / "o.db"
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from custom_components.gridledger.outbox import Outbox
outbox = Outbox(Path({str(path)!r}))
for i in range(1, 10_000):
    outbox.append([{{"interval_start": str(900 * i)}}], {{"cut_at": 900 * (i + 1)}})
    print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            if last >= 50:
                os.kill(process.pid, signal.SIGKILL)
                break
    outbox = _Opened(path)
    starts = [stored.interval_start for stored in reversed(outbox.recent(20_000))]
    assert starts == [900 * i for i in range(1, len(starts) + 1)]
    assert len(starts) >= last
    assert outbox.fact("meter") == {"cut_at": 900 * (len(starts) + 1)}


def test_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(OutboxError, match="has format 99"):
        Outbox(newer)
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(OutboxError, match="can't be used"):
        Outbox(broken)
