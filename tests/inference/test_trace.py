"""Traces: what is in the table is in the files and in the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from jmt_fast.errors import JMTError
from jmt_fast.inference import Trace


def drawn(rows: int) -> Trace:
    random = np.random.default_rng()
    times = 0.4 + np.sort(random.random(rows))
    return Trace.build(
        Path("talk.mp4"), times, random.uniform(-1, 1, (rows, 2)).astype(np.float32), random.random(rows) > 0.3
    )


@pytest.fixture
def trace() -> Trace:
    return drawn(50)


def test_the_table_has_the_documented_columns(trace: Trace) -> None:
    types = {field.name: str(field.type) for field in trace.table.schema}
    assert types == {
        "person": "string",
        "frame": "int64",
        "time": "double",
        "valence": "float",
        "arousal": "float",
        "valid": "bool",
    }
    assert trace.table["frame"].to_pylist() == list(range(50))
    assert trace.values.shape == (50, 2)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_give_the_table_back(trace: Trace, tmp_path: Path, suffix: str) -> None:
    path = trace.save(tmp_path / f"trace.{suffix}")
    read = pandas.read_parquet(path) if suffix == "parquet" else pandas.read_csv(path, dtype={"person": str})
    expected = trace.to_pandas()
    pandas.testing.assert_frame_equal(read, expected, check_dtype=suffix == "parquet", rtol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_an_unknown_ending_is_refused(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(JMTError, match=r"xlsx.*use one of \.parquet, \.csv"):
        trace.save(tmp_path / "trace.xlsx")


def test_a_folder_that_is_not_there_is_named(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(JMTError, match=r"cannot be written.*another --out"):
        trace.save(tmp_path / "none" / "trace.csv")


def test_smoothing_keeps_the_clock_and_the_range() -> None:
    trace = drawn(1000)  # of fewer rows the smoothed deviation, of the last one's values held, is a matter of chance
    smoothed = trace.smoothed(20, 50)
    assert np.array_equal(smoothed.times, trace.times)
    assert (smoothed.values.std(0) < 0.5 * trace.values.std(0)).all()
    assert smoothed.table["valid"] == trace.table["valid"]


def test_the_plot_draws_prediction_and_annotation(trace: Trace) -> None:
    truth = np.random.default_rng().uniform(-1, 1, (50, 2)).astype(np.float32)
    truth[10:20] = -5
    figure = trace.plot(truth)
    for column, panel in enumerate(figure.axes):
        drawn, predicted = (line.get_ydata() for line in panel.lines[:2])
        assert np.isnan(drawn[10:20]).all()
        assert np.allclose(np.delete(drawn, range(10, 20)), np.delete(truth[:, column], range(10, 20)))
        assert np.allclose(predicted, trace.values[:, column])
