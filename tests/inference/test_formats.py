"""Trace files: read by the programs that they are for, whole or not there, and read back."""

from __future__ import annotations

import csv
import os
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from jmt_fast.cli.predict import Format
from jmt_fast.errors import DataError, JMTError
from jmt_fast.inference import Trace
from jmt_fast.inference.elan import segments
from jmt_fast.inference.formats import FORMATS, READABLE, read_traces

ODD = os.fsdecode(b"a <b> & \"c\" 'd' \xff.mp4")


def a_trace(source: Path = Path("talk.mp4"), count: int = 90, person: str = "0") -> Trace:
    random = np.random.default_rng(count)
    times = 0.4 + np.cumsum(random.uniform(0.02, 0.05, count))
    values = np.sin(np.arange(count)[:, None] / [7, 11]).astype(np.float32)
    return Trace.build(source, times, values, np.arange(count) % 40 > 5, person)


def test_the_command_line_offers_every_format() -> None:
    assert {each.value for each in Format} == set(FORMATS)


@pytest.mark.parametrize("ending", READABLE)
def test_what_is_written_is_read_back(tmp_path: Path, ending: str) -> None:
    trace = a_trace(tmp_path / ODD)
    path = trace.save(tmp_path / f"trace.{ending}")
    [again] = read_traces(path)
    assert again.table.equals(trace.table)
    assert again.source == (trace.source if ending == "parquet" else path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_format_may_be_named(tmp_path: Path) -> None:
    a_trace().save(tmp_path / "talk.txt", "vtt")
    assert (tmp_path / "talk.txt").read_text().startswith("WEBVTT")


def test_people_of_one_file_are_told_apart(tmp_path: Path) -> None:
    both = [a_trace(person="0"), a_trace(count=40, person="1")]
    Trace(pa.concat_tables([each.table for each in both]), Path("talk.mp4")).save(tmp_path / "both.csv")
    for found, expected in zip(read_traces(tmp_path / "both.csv"), both, strict=True):
        assert found.table.equals(expected.table)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"no table", "cannot be read as a trace"),
        ("a.jsonl", b"", "cannot be read"),
        ("a.csv", b"person,frame,time,valence,valid\n0,0,0.0,0.1,true\n", "no column `arousal`"),
        ("a.csv", b"person,frame,time,valence,arousal,valid\n", "no rows"),
        ("a.csv", b"person,frame,time,valence,arousal,valid\n0,0,0.0,much,0,true\n", "not a trace"),
        ("a.csv", b"person,frame,time,valence,arousal,valid\n0,0,0.0,,0.1,true\n0,1,0.1,0.2,0.1,true\n", "`valence`"),
        ("a.csv", b"person,frame,time,valence,arousal,valid\n0,0,1.0,0,0,true\n0,1,0.5,0,0,true\n", "goes back"),
        ("a.vtt", b"WEBVTT\n", "read from .parquet, .csv, .jsonl"),
        ("none.csv", None, "none.csv"),
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(reason)) as error:
        read_traces(tmp_path / name)
    assert "\n" not in str(error.value)


def test_elan_reads_the_segments(tmp_path: Path) -> None:
    elan = pytest.importorskip("pympi.Elan", reason="pympi-ling is not installed")
    trace = a_trace(tmp_path / ODD)
    trace.save(tmp_path / "talk.eaf")
    read = elan.Eaf(str(tmp_path / "talk.eaf"))
    assert list(read.get_tier_names()) == ["valence", "arousal"]
    for column, name in enumerate(("valence", "arousal")):
        found = sorted(read.get_annotation_data_for_tier(name))
        assert found == segments(trace, column)
        assert len(found) > 3
        for begin, end, level in found:
            inside = (trace.times >= begin / 1000 - 5e-4) & (trace.times < end / 1000 - 5e-4)
            assert inside.any()
            assert trace.valid[inside].all()
            assert (trace.values[inside, column] * {"high": 1, "low": -1}[level] >= 0.3).all()
        covered = sum(end - begin for begin, end, _ in found) / 1000
        wanted = (trace.ends - trace.times)[trace.valid & (np.abs(trace.values[:, column]) >= 0.3)].sum()
        assert covered == pytest.approx(wanted, abs=0.001 * len(found))


def test_the_eaf_keeps_to_the_schema(tmp_path: Path) -> None:
    """EAF 3.0: the order of the parts, ids that are unique, references that lead somewhere, times that ascend."""
    a_trace(tmp_path / ODD).save(tmp_path / "talk.eaf")
    root = ElementTree.parse(tmp_path / "talk.eaf").getroot()
    assert [each.tag for each in root] == ["HEADER", "TIME_ORDER", "TIER", "TIER", "LINGUISTIC_TYPE"]
    assert [each.tag for each in root[0]] == ["MEDIA_DESCRIPTOR", "LINKED_FILE_DESCRIPTOR", "LINKED_FILE_DESCRIPTOR"]
    assert root.attrib["FORMAT"] == "3.0"
    assert {"AUTHOR", "DATE", "VERSION"} <= root.attrib.keys()
    slots = {slot.attrib["TIME_SLOT_ID"]: int(slot.attrib["TIME_VALUE"]) for slot in root.iter("TIME_SLOT")}
    annotations = list(root.iter("ALIGNABLE_ANNOTATION"))
    assert len(slots) == 2 * len(annotations)
    assert len({each.attrib["ANNOTATION_ID"] for each in annotations}) == len(annotations)
    for tier in root.iter("TIER"):
        assert tier.attrib["LINGUISTIC_TYPE_REF"] == root[-1].attrib["LINGUISTIC_TYPE_ID"]
        spans = [
            (slots[each.attrib["TIME_SLOT_REF1"]], slots[each.attrib["TIME_SLOT_REF2"]])
            for each in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        assert all(begin < end for begin, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_elans_timeseries_viewer_finds_the_series(tmp_path: Path) -> None:
    trace = a_trace(tmp_path / "talk.mp4")
    trace.save(tmp_path / "talk.eaf")
    links = [each.attrib for each in ElementTree.parse(tmp_path / "talk.eaf").iter("LINKED_FILE_DESCRIPTOR")]
    source = ElementTree.parse(tmp_path / "talk_tsconf.xml").getroot().find("tracksource")
    assert source is not None
    assert [each["RELATIVE_LINK_URL"] for each in links] == ["./talk_timeseries.csv", "./talk_tsconf.xml"]
    assert source.attrib["source-url"] == links[0]["LINK_URL"] == f"file://{tmp_path}/talk_timeseries.csv"
    with (tmp_path / "talk_timeseries.csv").open() as file:
        rows = np.array([row for row in csv.reader(file) if not row[0].startswith("#")], float)
    assert np.allclose(rows[:, int(source.attrib["time-column"])], trace.times, atol=5e-4)
    for column, track in enumerate(source.iter("track")):
        at = track.find("sample-position/pos")
        assert at is not None
        assert np.allclose(rows[:, int(at.attrib["col"])], trace.values[:, column], atol=1e-4)


def test_a_trace_of_one_frame_fits_every_format(tmp_path: Path) -> None:
    for ending in FORMATS:
        a_trace(count=1).save(tmp_path / f"one.{ending}")
        assert (tmp_path / f"one.{ending}").stat().st_size > 0


def test_subtitles_cover_the_video_with_the_means(tmp_path: Path) -> None:
    trace = a_trace(count=200)
    trace.save(tmp_path / "talk.vtt")
    head, *cues = (tmp_path / "talk.vtt").read_text().strip().split("\n\n")
    assert head == "WEBVTT"
    ends = []
    for cue in cues:
        clock, text = cue.split("\n")
        found = re.fullmatch(r"00:00:(\d\d\.\d{3}) --> 00:00:(\d\d\.\d{3})", clock)
        assert found
        begin, end = map(float, found.groups())
        inside = (trace.times >= begin - 5e-4) & (trace.times < end - 5e-4) & trace.valid
        means = trace.values[inside].mean(axis=0) if inside.any() else None
        assert text == ("no face" if means is None else f"valence {means[0]:+.2f}  arousal {means[1]:+.2f}")
        assert not ends or begin == ends[-1]
        ends.append(end)
    assert len(cues) == pytest.approx((trace.ends[-1] - trace.times[0]) / 0.5, abs=1.5)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "talk.csv").mkdir()
    with pytest.raises(JMTError, match=r"talk\.csv: cannot be written"):
        a_trace().save(tmp_path / "talk.csv")
    assert [each.name for each in tmp_path.iterdir()] == ["talk.csv"]
