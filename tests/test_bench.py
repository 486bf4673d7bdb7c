"""README's tables are what the committed rows give; how rows become comparisons; the memory count behind a column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.timing import Prepared, Timing, peak_memory, stopwatch
from jmt_fast.bench import QUESTIONS, section, write_report
from jmt_fast.bench.report import END, START, TITLES, Comparison
from jmt_fast.cli.bench import Question
from jmt_fast.errors import JMTError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def row(peer: str, ms: float | None, ratio: float | None = None, **more: Any) -> dict[str, Any]:
    about = {"device": "Some CPU", "date": "2026-11-22T10:00:00+00:00", "torch": "2.15.0", "triton": "3.9.0"}
    return {"shape": "forward, small", "peer": peer, "ms": ms, "ratio": ratio, **about, **more}


def stored(root: Path, rows: list[dict[str, Any]], name: str = "some/fusion.json") -> Path:
    path = root / "benchmarks" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return root / "benchmarks" / "results"


ROWS = [
    row("floor, bf16, 6 M weights", 0.5),
    row("floor, fp32, 6 M weights", 1.0),
    row("prepared, bf16", 2.0, 4.0),
    row("prepared, bf16, again", 1.0, 8.0),
    row("prepared, fp32", 4.0, 2.0),
    row("reference, eager", 8.0, 1.0),
    row("reference, compiled", 5.0, 1.6),
    row("absent", None, None, error="not installed"),
]


def test_the_readme_shows_the_committed_rows() -> None:
    shown = (ROOT / "README.md").read_text().partition(START)[2].partition(END)[0]
    assert shown.strip() == section(ROOT / "benchmarks" / "results"), (
        "run `jmt-fast bench`, or jmt_fast.bench.write_report"
    )
    assert (ROOT / "docs" / "benchmarks.png").is_file()


def test_every_question_has_its_benchmark() -> None:
    assert set(QUESTIONS) == set(TITLES) == set(Question)
    for name in QUESTIONS:
        assert (ROOT / "benchmarks" / f"test_{name}.py").is_file()


def test_a_comparison_takes_our_best_and_names_whoever_beats_the_base() -> None:
    found = Comparison.of("forward, small", ROWS)
    assert found is not None
    assert (found.ours["peer"], found.base["peer"]) == ("prepared, bf16", "reference, eager")
    assert found.faster is not None and found.faster["peer"] == "reference, compiled"
    assert found.floor == 0.5
    assert Comparison.of("ours alone", ROWS[2:4]) is None
    slower = [*ROWS[:6], row("reference, compiled", 9.0, 8 / 9)]
    assert (without := Comparison.of("forward, small", slower)) and without.faster is None


def test_the_bare_graph_of_ours_has_a_column_of_its_own(tmp_path: Path) -> None:
    replay = row("prepared, bf16, graph replay", 0.25, 32.0)
    found = Comparison.of("forward, small", [*ROWS, replay])
    assert found is not None and (found.ours["peer"], found.replay) == ("prepared, bf16", replay)
    text = section(stored(tmp_path, [*ROWS, replay]))
    assert "ratio to it | graph replay | floor |" in text
    assert "| forward, small | 2 ms | 8 ms | 4.00 | 5 ms | 2.50 | 0.25 ms | 0.5 ms |" in text
    failed = row("prepared, bf16, graph replay", None, None, error="no graph")
    assert section(stored(tmp_path, [*ROWS, failed])) == section(stored(tmp_path, ROWS))


def test_what_is_slower_on_a_pipeline_s_way_is_its_bound(tmp_path: Path) -> None:
    """Decoding and backbones alone: the other one has no ratio, so it is no faster peer."""
    rows = [row("backbones alone", 1.0), row("decoding alone", 3.0, 1.0), row("jmt-fast, end to end", 4.0, 0.75)]
    text = section(stored(tmp_path, rows, "some/collection.json"))
    assert "against: decoding alone | ratio |\n" in text and "| 4 ms | 3 ms | 0.75 |" in text


def test_the_section_has_a_table_for_what_was_measured_and_none_for_a_gpu_that_was_not(tmp_path: Path) -> None:
    results = stored(tmp_path, ROWS)
    text = section(results)
    assert "**Some CPU**, 22 November 2026, torch 2.15.0, triton 3.9.0" in text
    assert "| forward, small | 2 ms | 8 ms | 4.00 | 5 ms | 2.50 | 0.5 ms |" in text
    assert "Nothing has been measured on a GPU yet" in text
    gpu = [row | {"device": "Zebra GPU", "power_cap_w": "350.00"} for row in ROWS]
    text = section(stored(tmp_path, gpu, "zebra/attention.json"))
    assert "on a GPU yet" not in text
    assert text.index("**Zebra GPU**, power cap 350.00 W") < text.index("**Some CPU**")
    assert section(tmp_path / "nothing") == "Nothing has been measured on a GPU yet."


def test_the_report_replaces_what_stands_between_the_markers_only(tmp_path: Path) -> None:
    results = stored(tmp_path, ROWS)
    (tmp_path / "README.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for _ in range(2):
        readme, picture = write_report(tmp_path)
        assert readme.read_text() == f"before\n{START}\n\n{section(results)}\n\n{END}\nafter\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(JMTError, match="benchmarks:start"):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["[", "[]", "{}", "[1]", '[{"ms": 1}]'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    path = stored(tmp_path, []) / "some" / "fusion.json"
    path.write_text(text)
    with pytest.raises(JMTError, match=r"some/fusion\.json"):
        section(path.parents[1])


def test_memory_is_what_a_call_holds_beyond_its_results() -> None:
    x = torch.randn(1 << 18)  # 1 MiB; numbers such as the 2 below are tensors of a few bytes for a moment
    for call, mib in (
        (lambda: x + 1, 0),
        (lambda: (x + 1) * 2, 1),
        (lambda: [x + 1, (x + 1) * 2 * 3], 1),
        (lambda: x[:1].clone(), 0),
    ):
        assert peak_memory(call, CPU) == pytest.approx(mib << 20, abs=100)


def test_what_is_prepared_is_not_timed() -> None:
    order: list[str] = []
    peer = Prepared(
        lambda: order.append("made") or torch.randn(512, 512).matrix_power(64), lambda made: order.append("timed")
    )
    clock, how = stopwatch(peer, CPU, 1.0)
    assert how == "wall clock"
    assert clock() < 1e-3
    assert order == ["made", "timed"]
    assert Timing.of([3e-3, 1e-3, 2e-3], how).columns()["ms"] == pytest.approx(2.0)
