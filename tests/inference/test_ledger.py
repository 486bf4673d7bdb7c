"""The ledger: a row is on disk once it is added, whatever happens next, and one run at a time has the folder."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest

from jmt_fast.errors import JMTError
from jmt_fast.inference.ledger import DONE, JOURNAL, TABLE, Ledger, Row, as_line, as_text


def row(number: int, **fields) -> Row:
    return Row(f"/videos/{number}.mp4", str(number), 100, 5, "s", DONE, outputs=(f"{number}.parquet",), **fields)


def killed(folder: Path, *rows: Row) -> bytes:
    """A run that adds rows and ends without leaving; what it leaves in the journal."""
    child = os.fork()
    if not child:
        ledger = Ledger(folder)
        for each in rows:
            ledger.add(each)
        os._exit(0)
    os.waitpid(child, 0)
    return (folder / JOURNAL).read_bytes()


def test_rows_outlive_a_kill(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(row(0, rows=7, duration=1.5, warnings=("two\nlines",)))
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]
    killed(tmp_path, row(1), row(0, rows=8))
    table = pandas.read_parquet(tmp_path / TABLE)
    assert table["rows"].tolist() == [7]
    assert table["warnings"][0].tolist() == ["two\nlines"]
    with Ledger(tmp_path) as ledger:
        assert ledger.rows == {each.path: each for each in (row(0, rows=8), row(1))}
        assert pandas.read_parquet(tmp_path / TABLE)["rows"].tolist() == [8, 0]
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_written_row_is_dropped_and_the_others_kept(tmp_path: Path, cut: int) -> None:
    journal = killed(tmp_path, row(0), row(1))
    (tmp_path / JOURNAL).write_bytes(journal[:-cut])
    with Ledger(tmp_path) as ledger:
        assert list(ledger.rows.values()) == [row(0)]
        ledger.add(row(2))
    with Ledger(tmp_path) as ledger:
        assert list(ledger.rows.values()) == [row(0), row(2)]


def test_a_row_of_another_version_is_no_row(tmp_path: Path) -> None:
    journal = killed(tmp_path, row(0))
    *_, line, _ = journal.split(b"\n")
    facts = json.loads(line)
    more, less = facts | {"colour": "red"}, {name: value for name, value in facts.items() if name != "outputs"}
    others = [more, less, [facts], 5, facts | {"warnings": None}]
    (tmp_path / JOURNAL).write_bytes(journal + b"".join(json.dumps(each).encode() + b"\n" for each in others))
    with Ledger(tmp_path) as ledger:
        assert list(ledger.rows.values()) == [row(0)]


def test_a_second_run_is_refused_and_told_who_has_the_folder(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(row(0))
        with pytest.raises(
            JMTError, match=rf"{tmp_path}: another run .*process {os.getpid()} on {os.uname().nodename}"
        ):
            Ledger(tmp_path)
        ledger.add(row(1))
    with Ledger(tmp_path) as ledger:
        assert len(ledger.rows) == 2


def test_a_run_that_fails_keeps_its_rows_and_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with Ledger(tmp_path) as ledger:
            ledger.add(row(0))
            (tmp_path / TABLE).mkdir()  # the table cannot be written
            raise ZeroDivisionError
    assert (tmp_path / JOURNAL).exists()
    (tmp_path / TABLE).rmdir()
    with Ledger(tmp_path) as ledger:
        assert list(ledger.rows.values()) == [row(0)]


def test_a_full_disk_keeps_the_rows_that_were_added(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    child = os.fork()
    if not child:
        added, code = 0, 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            with Ledger(tmp_path) as ledger:
                for added in range(100):
                    ledger.add(row(added))
        except JMTError as error:
            line = f"{tmp_path / JOURNAL}: cannot be written: "
            code = 100 + added if str(error).startswith(line) and "free some space" in str(error) else 2
        finally:
            os._exit(code)
    added = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 100
    assert 2 < added < 50
    with Ledger(tmp_path) as ledger:
        assert list(ledger.rows.values()) == [row(number) for number in range(added)]


def test_what_is_no_ledger_is_refused_and_left(tmp_path: Path) -> None:
    for content in (b"words", None):
        if content is None:
            pa.parquet.write_table(pa.table({"path": ["a"]}), tmp_path / TABLE)
        else:
            (tmp_path / TABLE).write_bytes(content)
        before = (tmp_path / TABLE).read_bytes()
        with pytest.raises(JMTError, match=f"{TABLE}: not a ledger of this version"):
            Ledger(tmp_path)
        assert (tmp_path / TABLE).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(JMTError, match=r"^/sys: the output folder cannot be written: .*; pass another --out$"):
        Ledger(Path("/sys"))


def test_every_path_has_a_text_of_its_own() -> None:
    names = ["a", "ä", "a\\xff", "a\udcff", "a\\\\xff", "a\n", "a\\n"]
    texts = [as_text(name) for name in names]
    assert len(set(texts)) == len(names)
    assert texts[3] == "a\\xff"
    assert json.dumps(texts).encode()
    assert as_line("a\n\udcff") == "a\\n\\xff"
