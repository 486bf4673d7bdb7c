"""The DALI graph on a CPU, against oracles in FP64."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast.config import FrameConfig, SpectrogramConfig
from jmt_fast.data.graph import ClipGraph, ops
from jmt_fast.errors import DataError

FRAMES = FrameConfig()
SMALL = FrameConfig(resize=40, crop=32)
SOUND = SpectrogramConfig()
ROUNDING = 0.51  # grey levels: half a level of rounding to uint8, and FP32's error in the two passes


@pytest.fixture(scope="module")
def graph() -> ClipGraph:
    return ClipGraph(FRAMES, SOUND)


@pytest.fixture(scope="module")
def small() -> ClipGraph:
    return ClipGraph(SMALL, SOUND)


@pytest.fixture(params=[0, 1])
def rng(request) -> np.random.Generator:
    return np.random.default_rng(request.param)


def pictures(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def grey(normalised: torch.Tensor, config: FrameConfig) -> np.ndarray:
    """Undo the normalisation: (F, 3, H, W) -> (F, H, W, 3) in grey levels, FP64."""
    pixels = normalised.double().permute(0, 2, 3, 1).numpy()
    return 255 * (pixels * np.array(config.std) + np.array(config.mean))


def triangle(source: int, target: int, wanted: range) -> np.ndarray:
    """(wanted, source) weights of linear resampling with antialiasing; at the ends the edge pixel is repeated."""
    step = source / target
    reach = max(1.0, step)
    weights = np.zeros((len(wanted), source))
    for row, position in enumerate(wanted):
        centre = (position + 0.5) * step - 0.5
        taps = np.arange(np.floor(centre - reach), np.ceil(centre + reach) + 1)
        values = np.maximum(0, 1 - np.abs(taps - centre) / reach)
        np.add.at(weights[row], np.clip(taps, 0, source - 1).astype(int), values / values.sum())
    return weights


def size_after(height: int, width: int, shorter: int) -> tuple[int, int]:
    return tuple(int(np.floor(side * shorter / min(height, width) + 0.5)) for side in (height, width))


def resized(frame: np.ndarray, config: FrameConfig, x: float = 0.5, y: float = 0.5, whole: bool = False) -> np.ndarray:
    """(crop, crop, 3), or the whole resized frame, in grey levels, FP64, not rounded."""
    height, width = frame.shape[:2]
    tall, wide = size_after(height, width, config.resize)
    if whole:
        rows, columns = range(tall), range(wide)
    else:
        top, left = (int(np.floor(p * (n - config.crop) + 0.5)) for p, n in ((y, tall), (x, wide)))
        rows, columns = range(top, top + config.crop), range(left, left + config.crop)
    down, across = triangle(height, tall, rows), triangle(width, wide, columns)
    return np.einsum("ij,jkc,lk->ilc", down, frame.astype(np.float64), across, optimize=True)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 600), (37, 91), (256, 256), (224, 224), (301, 257), (360, 640), (641, 359)]
)
def test_frames_against_an_antialiased_resize_in_fp64(graph, rng, size):
    video = pictures(rng, 2, *size)
    x, y = rng.random(2)
    got = graph.frames([video], crop_x=[x], crop_y=[y])[0]
    assert got.shape == (2, 3, 224, 224) and got.dtype == torch.float32 and got.is_contiguous()
    for mine, frame in zip(grey(got, FRAMES), video, strict=True):
        assert np.abs(mine - resized(frame, FRAMES, x, y)).max() <= ROUNDING


def test_4k_frame(graph):
    frame = pictures(np.random.default_rng(2), 1, 2160, 4096)
    assert np.abs(grey(graph.frames([frame])[0], FRAMES)[0] - resized(frame[0], FRAMES)).max() <= ROUNDING


def test_agrees_with_pytorch_away_from_the_border(graph, rng):
    """At the border PyTorch leaves out the taps that lie outside, DALI repeats the edge pixel."""
    video = pictures(rng, 1, 360, 640)
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2).double()
    want = torch.nn.functional.interpolate(pixels, size_after(360, 640, 256), mode="bilinear", antialias=True)
    want = want[0, :, 16:240, 116:340].permute(1, 2, 0).numpy()  # (455 - 224) / 2 = 115.5, rounded up
    assert np.abs(grey(graph.frames([video])[0], FRAMES)[0] - want).max() <= ROUNDING


def test_sizes_and_lengths_may_differ_within_a_call(small, rng):
    sequences = [pictures(rng, *shape) for shape in ((3, 60, 80), (1, 1, 1), (5, 33, 200), (2, 40, 40))]
    together = small.frames(sequences)
    assert [len(part) for part in together] == [3, 1, 5, 2]
    for part, sequence in zip(together, sequences, strict=True):
        assert torch.equal(part, small.frames([sequence])[0])
    assert small.frames([]) == []
    assert small.frames([sequences[0][:0], sequences[1]])[0].shape == (0, 3, 32, 32)


def test_a_list_of_frames_is_a_sequence(small, rng):
    video = pictures(rng, 4, 50, 70)
    video.flags.writeable = False
    want = small.frames([video])[0]
    assert torch.equal(small.frames([list(video)])[0], want)
    mirrored_memory = np.ascontiguousarray(video[:, ::-1])[:, ::-1]  # the same pixels, with negative strides
    assert torch.equal(small.frames([mirrored_memory])[0], want)


def test_one_crop_and_flip_for_all_frames_of_a_sequence(small, rng):
    still = np.repeat(pictures(rng, 1, 48, 96), 6, axis=0)
    a, b, plain = small.frames(
        [still, still, still], crop_x=[0, 1, 1], crop_y=[1, 0.3, 0.3], mirror=[False, True, False]
    )
    for part in (a, b, plain):
        assert torch.equal(part, part[:1].expand_as(part))
    assert not torch.equal(a, b)
    assert torch.equal(b, plain.flip(-1))


def test_crop_position(small):
    """Without a change of size the crop holds the source's own pixels."""
    rows, columns = np.mgrid[0:40, 0:100].astype(np.uint8)
    frame = np.stack([rows, columns, rows], axis=-1)[None]
    for x, y, left in ((0, 0.5, 0), (0.5, 0, 34), (1, 1, 68), (0.25, 0.5, 17)):
        top = int(y * 8 + 0.5)
        pixels = grey(small.frames([frame], crop_x=[x], crop_y=[y])[0], SMALL)[0]
        np.testing.assert_allclose(pixels, frame[0, top : top + 32, left : left + 32], atol=1e-4)


def test_resized_is_the_first_step_of_frames(graph, rng):
    sequences = [pictures(rng, 3, 360, 640), pictures(rng, 2, 90, 31), pictures(rng, 1, 256, 300)]
    parts = graph.resized(sequences)
    assert [tuple(part.shape) for part in parts] == [(3, 256, 455, 3), (2, 743, 256, 3), (1, 256, 300, 3)]
    for part, sequence in zip(parts, sequences, strict=True):
        assert part.dtype == torch.uint8
        assert np.abs(part[0].numpy() - resized(sequence[0], FRAMES, whole=True)).max() <= ROUNDING
        cached, direct = graph.frames([part.numpy()])[0], graph.frames([sequence])[0]
        assert np.abs(grey(cached, FRAMES) - grey(direct, FRAMES)).max() <= 1.001
    assert np.array_equal(parts[2].numpy(), sequences[2])


def test_a_call_larger_than_a_batch(small, rng):
    video = pictures(rng, 600, 8, 12)
    got = small.frames([video, video[:3]])
    assert torch.equal(got[0][-1:], small.frames([video[-1:]])[0])
    assert torch.equal(got[1], got[0][:3])
    assert small.resized([video])[0].shape == (600, 40, 60, 3)
    windows = rng.standard_normal((300, SOUND.samples), dtype=np.float32)
    assert torch.equal(small.spectrograms(windows)[299:], small.spectrograms(windows[299:]))


def test_results_outlive_later_calls(small, rng):
    video, windows = pictures(rng, 8, 50, 60), rng.standard_normal((4, SOUND.samples), dtype=np.float32)
    kept = [small.frames([video])[0], small.resized([video])[0], small.spectrograms(windows)]
    copies = [tensor.clone() for tensor in kept]
    for _ in range(50):
        small.frames([255 - video])
        small.resized([255 - video])
        small.spectrograms(-windows[::-1].copy())
    for tensor, copy in zip(kept, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_the_input_is_read_before_the_call_returns(small, rng):
    video = pictures(rng, 8, 50, 60)
    want = small.frames([video.copy()])[0]
    got = small.frames([video])[0]
    video[:] = 0
    assert torch.equal(got, want)


def test_calls_from_several_threads(small, rng):
    videos = [pictures(rng, 4, 40 + k, 60) for k in range(4)]
    want = [small.frames([video])[0] for video in videos]
    equal = [[] for _ in videos]

    def work(k: int) -> None:
        for _ in range(25):
            equal[k].append(torch.equal(small.frames([videos[k]])[0], want[k]))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(len(results) == 25 and all(results) for results in equal)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_stays_flat(small, rng):
    video, windows = pictures(rng, 8, 300, 300), rng.standard_normal((8, SOUND.samples), dtype=np.float32)

    def call(times: int) -> None:
        for _ in range(times):
            count, height, width = rng.integers(1, 9), *rng.integers(1, 301, 2)
            small.frames([video[:count, :height, :width], video[:1]])
            small.spectrograms(windows[:count])

    call(100)
    before = resident()
    call(400)  # their results alone, had they been kept, would be 70 MB
    assert resident() - before < 20e6


def mel_filters(dtype: torch.dtype) -> torch.Tensor:
    """(mels, bins) triangles with a peak of 1, corners equally spaced on the HTK mel scale, all computed in `dtype`."""
    top = 2595 * torch.log10(1 + torch.tensor(SOUND.high_hz, dtype=dtype) / 700)
    corners = 700 * (10 ** (torch.arange(SOUND.mels + 2, dtype=dtype) * (top / (SOUND.mels + 1)) / 2595) - 1)
    hertz = torch.arange(SOUND.n_fft // 2 + 1, dtype=dtype) * SOUND.sample_rate / SOUND.n_fft
    low, peak, high = (corners[k : k + SOUND.mels, None] for k in range(3))
    return torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)).clamp(min=0)


def log_mel(windows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The spectrogram of the specification with torch.stft: (B, samples) -> (B, 1, 64, 107) in the given precision."""
    hann = torch.hann_window(SOUND.window, periodic=True, dtype=dtype)
    signal = torch.from_numpy(windows).to(dtype)
    spectrum = torch.stft(signal, SOUND.n_fft, SOUND.hop, SOUND.window, hann, pad_mode="reflect", return_complex=True)
    mel = mel_filters(dtype) @ spectrum.abs().square()
    decibels = 10 * torch.log10(mel.clamp(min=10 ** (SOUND.floor_db / 10)))
    return ((decibels - SOUND.mean_db) / SOUND.std_db).unsqueeze(1)


def sounds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    time = np.arange(SOUND.samples) / SOUND.sample_rate
    noise = rng.standard_normal(SOUND.samples)
    return {
        "noise": 0.1 * noise,
        "loud": np.clip(3 * noise, -1, 1),
        "quiet": 1e-4 * noise,
        "tone": 0.5 * np.sin(2 * np.pi * rng.uniform(100, 8000) * time),
        "sweep": np.sin(2 * np.pi * (50 + 9000 * time) * time),
        "late": np.where(time > 1.0, 0.3 * noise, 0),
    }


@pytest.mark.parametrize("kind", ["noise", "loud", "quiet", "tone", "sweep", "late"])
def test_spectrogram_against_fp64(graph, rng, kind):
    """Not further from FP64 than twice what torch.stft in FP32 is: 1e-5 for noise, 0.3 in a pure tone's empty bands."""
    windows = sounds(rng)[kind].astype(np.float32)[None]
    truth = log_mel(windows, torch.float64)
    own_error = (log_mel(windows, torch.float32) - truth).abs()
    error = (graph.spectrograms(windows) - truth).abs()
    assert error.shape == (1, 1, 64, 107)
    assert error.max() <= 2 * own_error.max()
    assert error.mean() <= 2 * own_error.mean()


def test_silence_is_the_floor(graph):
    floor = (SOUND.floor_db - SOUND.mean_db) / SOUND.std_db
    got = graph.spectrograms(np.zeros((2, SOUND.samples), np.float32))
    assert got.shape == (2, 1, 64, 107)
    torch.testing.assert_close(got, torch.full_like(got, floor))
    not_numbers = graph.spectrograms(np.full((2, SOUND.samples), np.nan, np.float32))
    torch.testing.assert_close(not_numbers, torch.full_like(got, floor))


def test_other_lengths_and_settings():
    config = SpectrogramConfig(samples=600, mels=8)  # shorter than the transform
    got = ClipGraph(SMALL, config).spectrograms(np.ones((3, 600), np.float32))
    assert got.shape == (3, 1, 8, 2) and got.isfinite().all()
    assert ClipGraph(SMALL, SOUND).spectrograms(np.zeros((0, SOUND.samples), np.float32)).shape == (0, 1, 64, 107)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([np.zeros((2, 8, 8, 3), np.float32)], "uint8"),
        ([np.zeros((8, 8, 3), np.uint8)], r"\(H, W, 3\)"),
        ([np.zeros((2, 8, 8, 4), np.uint8)], r"\(H, W, 3\)"),
        ([np.zeros((2, 0, 8, 3), np.uint8)], r"\(H, W, 3\)"),
        ([[np.zeros((8, 8, 3), np.uint8), None]], "uint8"),
    ],
)
def test_wrong_frames_are_refused(small, sequences, message):
    for call in (small.frames, small.resized):
        with pytest.raises(ValueError, match=f"sequences: .*{message}"):
            call(sequences)


def test_wrong_arguments_are_refused(small, rng):
    video = pictures(rng, 2, 8, 8)
    for name, values in (("crop_x", [1.1]), ("crop_y", [np.nan]), ("mirror", [True, False]), ("crop_x", 0.5)):
        with pytest.raises(ValueError, match=name):
            small.frames([video], **{name: values})
    for windows in (np.zeros((1, 10), np.float32), np.zeros(SOUND.samples, np.float32), np.zeros((1, SOUND.samples))):
        with pytest.raises(ValueError, match="windows"):
            small.spectrograms(windows)
    with pytest.raises(ValueError, match="different sizes"):
        small.resized([[video[0], video[0, :4]]])
    with pytest.raises(ValueError, match="without frames"):
        small.resized([video[:0]])
    with pytest.raises(DataError, match="crop the video first"):
        small.resized([np.zeros((1, 1, 5000, 3), np.uint8)])


def test_a_failed_run_leaves_a_usable_graph(small, rng):
    video = pictures(rng, 2, 50, 60)
    want = small.frames([video])[0]
    one = np.zeros((1, 2), np.float32)
    with pytest.raises(DataError, match=r"^media graph on cpu: .*batch size.*$"):
        small._frames(frames=list(video), start=one, end=one + 8, mirror=np.zeros(1, np.int32))
    assert torch.equal(small.frames([video])[0], want)


def test_an_interrupted_call_leaves_no_frames_to_the_next(small, rng):
    """A signal at many moments of a call; in the next one the frames must be its own."""
    first, second = (rng.integers(0, 256, (24, 240, 320, 3), dtype=np.uint8) for _ in range(2))
    lasts = np.inf
    for _ in range(5):  # a call that the machine held up would put most signals behind the others' ends
        start = time.perf_counter()
        [expected] = small.frames([second])
        lasts = min(lasts, time.perf_counter() - start)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for delay in np.linspace(0.02, 1, 25) * lasts:
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, delay)
                    small.frames([first])
                finally:  # where the signal may still come
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert torch.equal(small.frames([second])[0], expected)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 5


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs a device that DALI cannot use: here, a GPU that is not there"
)
def test_a_gpu_that_dali_cannot_use_gets_results_from_the_cpu(small, rng, monkeypatch, caplog):
    moved = []
    with caplog.at_level("DEBUG", "jmt_fast"):
        graph = ClipGraph(SMALL, SOUND, "cuda:0")
    assert (graph.device, graph.runs_on, graph.shorter) == (torch.device("cuda:0"), torch.device("cpu"), SMALL.resize)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("the media graph runs on the CPU, as DALI cannot use cuda:0: ")
    video, windows = pictures(rng, 3, 50, 60), rng.standard_normal((2, SOUND.samples), dtype=np.float32)
    want = [small.frames([video])[0], small.resized([video])[0], small.spectrograms(windows)]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor)
    got = [graph.frames([video])[0], graph.resized([video])[0], graph.spectrograms(windows)]
    assert moved == [graph.device] * 3
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_device_is_tried_once(monkeypatch):
    tried = []

    def fails(*arguments: object) -> None:
        tried.append(arguments)
        raise RuntimeError("encountered:\n\nCUDA driver version is insufficient\n")

    monkeypatch.setattr(ops, "build", fails)
    monkeypatch.setattr(ops, "on", lambda device: nullcontext())
    graphs = [ClipGraph(SMALL, SOUND, "cuda:7") for _ in range(3)]
    assert [graph.runs_on.type for graph in graphs] == ["cpu"] * 3
    assert len(tried) == 1
    assert ops.refusal(torch.device("cuda:7")) == "CUDA driver version is insufficient"
    assert ClipGraph(SMALL, SOUND).runs_on.type == "cpu" and len(tried) == 1
