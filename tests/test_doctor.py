"""What `doctor` says of parts that another machine would have."""

from __future__ import annotations

import pytest
import torch

from jmt_fast import doctor


@pytest.mark.parametrize(
    ("device", "refusal", "choice", "why"),
    [
        ("cpu", None, "DALI on the CPU", "follows the device"),
        ("cuda", None, "DALI on the GPU", "a trial of it went well"),
        (
            "cuda",
            "driver too old",
            "DALI on the CPU, results moved to the GPU",
            "DALI cannot use the GPU: driver too old",
        ),
    ],
)
def test_where_the_media_graph_runs(
    monkeypatch: pytest.MonkeyPatch, device: str, refusal: str | None, choice: str, why: str
) -> None:
    monkeypatch.setattr(doctor.ops, "refusal", lambda device: refusal)
    found = doctor._graph(torch.device(device))
    assert (found.what, found.choice) == ("media graph", choice)
    assert why in found.why
