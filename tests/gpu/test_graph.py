"""The DALI graph on a GPU, against the same graph on a CPU, and NVDEC against PyAV."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from jmt_fast.config import FrameConfig, SpectrogramConfig
from jmt_fast.data.graph import ClipGraph, can_decode
from jmt_fast.errors import DataError, MediaError
from jmt_fast.media import MediaInfo, probe, select
from jmt_fast.media.images import Jpeg

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: compares CPU and GPU graphs"
)
CONFIG, SOUND = FrameConfig(), SpectrogramConfig()
FRAMES = 50


@pytest.fixture(scope="module")
def cpu() -> ClipGraph:
    return ClipGraph(CONFIG, SOUND)


@pytest.fixture(scope="module")
def gpu() -> ClipGraph:
    return ClipGraph(CONFIG, SOUND, "cuda")


@pytest.fixture(params=[0, 1])
def rng(request) -> np.random.Generator:
    return np.random.default_rng(request.param)


def levels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Differences of two normalised batches of frames in grey levels."""
    return (a.cpu() - b.cpu()).abs() * 255 * torch.tensor(CONFIG.std).view(3, 1, 1)


def test_frames_differ_by_rounding_only(cpu, gpu, rng):
    """The two resamplers add in another order, so that a few pixels round to the neighbouring grey level."""
    shapes = ((3, 360, 640), (2, 1, 1), (4, 97, 31), (1, 1080, 1920))
    sequences = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    options = {"crop_x": rng.random(4), "crop_y": rng.random(4), "mirror": [True, False, True, False]}
    for a, b in zip(cpu.frames(sequences, **options), gpu.frames(sequences, **options), strict=True):
        assert b.is_cuda and a.shape == b.shape
        assert levels(a, b).max() <= 1.01
        assert levels(a, b).mean() <= 0.02
    for a, b in zip(cpu.resized(sequences[:3]), gpu.resized(sequences[:3]), strict=True):
        assert b.is_cuda and (a.int() - b.cpu().int()).abs().max() <= 1


def test_jpegs_agree_and_a_bad_one_is_found(cpu, gpu, rng):
    """Two decoders, libjpeg-turbo and nvJPEG, which both interpolate colour."""
    rows, columns = np.mgrid[0:112, 0:112]
    jpegs = []
    for number, subsampling in enumerate((0, 2, 2)):
        waves = [np.sin(rows / 9 + number), np.cos(columns / 11 - number), np.sin((rows + columns) / 14)]
        data = io.BytesIO()
        Image.fromarray((127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(
            data, "JPEG", quality=95, subsampling=subsampling
        )
        jpegs.append(Jpeg.of(data.getvalue()))
    [expected], [found] = cpu.frames([jpegs]), gpu.frames([jpegs])
    assert found.is_cuda and levels(expected, found).max() <= 3.01 and levels(expected, found).mean() <= 1
    [expected], [found] = cpu.resized([jpegs]), gpu.resized([jpegs])
    assert found.is_cuda and (expected.int() - found.cpu().int()).abs().max() <= 3
    broken = Jpeg(np.frombuffer(b"\xff\xd8" + bytes(200) + b"\xff\xd9", np.uint8), (112, 112, 3))
    with pytest.raises(DataError):
        gpu.frames([[jpegs[0], broken]])
    assert [frame is None for _, frame in gpu.decodable(enumerate([*jpegs, broken]))] == [False] * 3 + [True]


def test_spectrograms_agree(cpu, gpu, rng):
    windows = 0.1 * rng.standard_normal((5, SOUND.samples), dtype=np.float32)
    got = gpu.spectrograms(windows)
    assert got.is_cuda and got.shape == (5, 1, 64, 107)
    torch.testing.assert_close(got.cpu(), cpu.spectrograms(windows), rtol=0, atol=1e-4)
    silence = np.zeros_like(windows)
    torch.testing.assert_close(gpu.spectrograms(silence).cpu(), cpu.spectrograms(silence))


def test_results_outlive_later_calls(gpu, rng):
    video = rng.integers(0, 256, (16, 200, 300, 3), dtype=np.uint8)
    windows = rng.standard_normal((16, SOUND.samples), dtype=np.float32)
    kept = [gpu.frames([video])[0], gpu.resized([video])[0], gpu.spectrograms(windows)]
    copies = [tensor.clone() for tensor in kept]
    for _ in range(50):
        gpu.frames([255 - video])
        gpu.resized([255 - video])
        gpu.spectrograms(-windows)
    torch.cuda.synchronize()
    for tensor, copy in zip(kept, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_freed_results_are_not_overwritten_while_in_use(gpu, rng):
    """A result may be released while kernels that read it are still queued on the same stream."""
    videos = [rng.integers(0, 256, (32, 200, 300, 3), dtype=np.uint8) for _ in range(4)]
    want = [gpu.frames([video])[0].double().sum().item() for video in videos]
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for video in videos * 5:
        frames = gpu.frames([video])[0]
        for _ in range(4):
            busy = torch.nn.functional.normalize(busy @ busy)
        sums.append(frames.double().sum())
        del frames
    torch.testing.assert_close([value.item() for value in sums], want * 5, rtol=1e-12, atol=0)


def write(path: Path, codec: str, pixel_format: str = "yuv420p", **options: str) -> MediaInfo:
    """A moving smooth pattern, 320 x 180, FRAMES frames. Skips where FFmpeg has no such encoder."""
    rows, columns = np.mgrid[0:180, 0:320]
    with av.open(str(path), "w") as container:
        try:
            stream = container.add_stream(codec, rate=30, options=options)
        except ValueError:
            pytest.skip(f"this FFmpeg has no encoder {codec}")
        stream.width, stream.height, stream.pix_fmt = 320, 180, pixel_format
        for k in range(FRAMES):
            waves = [np.sin(rows / 20 + k / 3), np.cos(columns / 30 - k / 4), np.sin((rows + columns) / 40 + k / 5)]
            picture = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return probe(path)


def decodable(info: MediaInfo) -> None:
    possible, reason = can_decode(info, "cuda")
    if not possible:
        pytest.skip(f"needs NVDEC for {info.codec}: {reason}")


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("a.mp4", "libx264", "yuv420p", {"bf": "3", "g": "12"}),
        ("full.mp4", "libx264", "yuvj420p", {}),
        ("a.mkv", "libx265", "yuv420p", {}),
    ],
)
def test_nvdec_equals_pyav(gpu, tmp_path, name, codec, pixel_format, options):
    """Within 3 grey levels: NVDEC's frames are exact, its conversion to RGB interpolates colour differently."""
    info = write(tmp_path / name, codec, pixel_format, **options)
    decodable(info)
    fed = gpu.frames([[frame for _, _, frame in select(info.path, range(FRAMES))]])[0]
    blocks = list(gpu.decoded(info, 16))
    assert [first for first, _ in blocks] == [0, 16, 32, 48]
    got = torch.cat([frames for _, frames in blocks])
    assert got.is_cuda and got.shape == fed.shape
    assert levels(got, fed).max() <= 3.01
    assert levels(got, fed).mean() <= 1


def test_truncated_file_on_nvdec(gpu, tmp_path):
    info = write(tmp_path / "a.mkv", "libx264")
    decodable(info)
    whole = gpu.frames([[frame for _, _, frame in select(info.path, range(FRAMES))]])[0]
    info.path.write_bytes(info.path.read_bytes()[: info.path.stat().st_size // 2])
    short = probe(info.path)
    assert short.frames < FRAMES
    try:
        got = torch.cat([frames for _, frames in gpu.decoded(short, 8)])
    except MediaError as error:
        assert "a.mkv" in str(error)
    else:
        assert len(got) == short.frames
        assert levels(got[:-1], whole[: len(got) - 1]).max() <= 3.01  # the last packet may be cut


def test_memory_stays_flat(gpu, rng):
    video = rng.integers(0, 256, (32, 360, 640, 3), dtype=np.uint8)

    def call(times: int) -> int:
        for _ in range(times):
            gpu.frames([video[: rng.integers(1, 33)]])
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    before = call(100)
    assert call(400) - before < 100e6
