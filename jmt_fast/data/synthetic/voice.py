"""A synthetic voice: a wavetable source, formants and spectral tilt, driven by arousal.

Source and filter as in Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67 (1980), reduced to what a
log-mel spectrogram shows: pitch, loudness, tempo of the syllables, spectral tilt, formants, hiss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jmt_fast.data.synthetic.traces import Script, smooth_noise

SAMPLE_RATE = 44_100
CONTROL_RATE = 300  # Hz: syllable envelope
HARMONICS = 30  # up to 10 kHz at the highest pitch
WINDOW, HOP = 1024, 256  # samples: the formant filter works on overlapping spectra
BLOCK = 4096  # spectra filtered at a time, to bound memory

PITCH_OCTAVES = 0.55  # per unit of arousal, as all below
LOUDNESS_DB = 9.0
TEMPO_OCTAVES = 0.6
TILT_DB_PER_OCTAVE = 3.0
FORMANT_SHIFT = 0.04  # per deviation of the minor (valence) control

VOWELS = np.array(  # formants F1-F3 in Hz of a, e, i, o, u: Peterson and Barney, JASA 24 (1952), men, rounded
    [[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010], [570, 840, 2410], [300, 870, 2240]], dtype=float
)


@dataclass(frozen=True)
class Speaker:
    """The nuisance side of a voice."""

    pitch: float  # Hz
    loudness: float  # dB
    formants: float  # factor on all formants (length of the vocal tract)
    tempo: float  # syllables a second at arousal 0
    breath: float  # share of noise in the source
    hiss: float  # dB: the room

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Speaker:
        pitch = 100 * 2.2 ** rng.uniform()
        return cls(
            pitch=pitch,
            loudness=rng.normal(0, 1.5),
            formants=(pitch / 150) ** 0.2 * rng.uniform(0.95, 1.05),
            tempo=rng.uniform(3.6, 4.4),
            breath=rng.uniform(0.02, 0.08),
            hiss=rng.uniform(-66, -58),
        )


@dataclass(frozen=True)
class Syllables:
    """What the mouth does, on the control clock: `envelope` in [0, 1] (ticks,), `index` of the syllable (ticks,)."""

    times: np.ndarray
    envelope: np.ndarray
    index: np.ndarray


def speak(script: Script, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The sound track and the mouth that goes with it.

    Returns float32 (samples,) mono at 44.1 kHz, within (-1, 1), as long as the video; and float64 (frames,): the
    mouth's opening in [0, 1] at each frame, which follows the syllables but not the loudness that arousal adds.
    """
    speaker = Speaker.draw(rng)
    count = round(script.frames / script.fps * SAMPLE_RATE)
    frame_times = np.arange(script.frames) / script.fps
    syllables = _syllables(script, speaker, rng)

    sample_times = np.arange(count) / SAMPLE_RATE
    arousal = np.interp(sample_times, frame_times, script.voice_arousal)
    intonation = 0.05 * smooth_noise(script.frames, script.fps, rng, scale=0.4)
    octaves = PITCH_OCTAVES * arousal + np.interp(sample_times, frame_times, intonation)
    source = _wavetable(rng).take((_cycles(speaker.pitch * 2**octaves) * 4096).astype(np.int64) & 4095)
    source += speaker.breath * rng.standard_normal(count, dtype=np.float32)

    gain = 10 ** ((speaker.loudness + LOUDNESS_DB * arousal) / 20)
    gain *= np.interp(sample_times, syllables.times, syllables.envelope)
    voiced = _formant_filter(source, script, speaker, syllables, rng) * gain.astype(np.float32)
    hiss = 10 ** (speaker.hiss / 20) * rng.standard_normal(count, dtype=np.float32)
    samples = np.tanh(0.11 * voiced + hiss)  # a soft limit, for the loudest syllables

    articulation = np.exp(0.3 * smooth_noise(script.frames, script.fps, rng))
    mouth = np.clip(0.75 * articulation * np.interp(frame_times, syllables.times, syllables.envelope), 0, 1)
    return samples.astype(np.float32), mouth


def _syllables(script: Script, speaker: Speaker, rng: np.random.Generator) -> Syllables:
    times = np.arange(int(script.frames / script.fps * CONTROL_RATE) + 1) / CONTROL_RATE
    frame_times = np.arange(script.frames) / script.fps
    tempo = speaker.tempo * 2 ** (TEMPO_OCTAVES * np.interp(times, frame_times, script.voice_arousal))
    phase = np.cumsum(tempo) / CONTROL_RATE
    index = phase.astype(np.int64)
    accents = rng.uniform(0.7, 1.0, index[-1] + 1)
    accents[rng.uniform(size=len(accents)) < 0.07] = 0  # a breath between words
    envelope = accents[index] * np.sin(np.pi * (phase - index)) ** 0.7

    speaking = np.interp(times, frame_times, 1.0 - script.silent)
    ramp = np.ones(CONTROL_RATE // 15) / (CONTROL_RATE // 15)
    edges = len(ramp) // 2, len(ramp) - 1 - len(ramp) // 2
    speaking = np.convolve(np.pad(speaking, edges, mode="edge"), ramp, mode="valid")
    return Syllables(times, envelope * speaking, index)


def _cycles(hertz: np.ndarray) -> np.ndarray:
    return np.cumsum(hertz) / SAMPLE_RATE


def _wavetable(rng: np.random.Generator) -> np.ndarray:
    """float32 (4096,): one period of the glottal source, harmonics falling by 6 dB an octave, unit power."""
    spectrum = np.zeros(2049, dtype=complex)
    spectrum[1 : HARMONICS + 1] = np.exp(2j * np.pi * rng.uniform(size=HARMONICS)) / np.arange(1, HARMONICS + 1)
    table = np.fft.irfft(spectrum)
    return (table / table.std()).astype(np.float32)


def _formant_filter(
    source: np.ndarray, script: Script, speaker: Speaker, syllables: Syllables, rng: np.random.Generator
) -> np.ndarray:
    """Shape the source, float32 (samples,), by vowel, formant shift and tilt, all of which change with time."""
    window = np.sin(np.pi * np.arange(WINDOW) / WINDOW).astype(np.float32)  # applied twice: Hann, which adds up
    padded = np.pad(source, (WINDOW, 2 * WINDOW))
    spectra = (len(padded) - WINDOW) // HOP + 1
    starts = np.arange(spectra) * HOP
    times = (starts - WINDOW / 2) / SAMPLE_RATE
    frame_times = np.arange(script.frames) / script.fps

    vowel = rng.integers(len(VOWELS), size=syllables.index[-1] + 1)
    spoken = vowel[syllables.index[np.clip((times * CONTROL_RATE).astype(np.int64), 0, len(syllables.index) - 1)]]
    shift = np.clip(np.interp(times, frame_times, script.voice_valence) / 2, -1, 1)[:, None]
    arousal = np.interp(times, frame_times, script.voice_arousal).astype(np.float32)[:, None]
    hertz = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    low, high = (_vowel_gains(hertz, speaker.formants * (1 + 2 * edge * FORMANT_SHIFT)) for edge in (-1, 1))
    octaves = np.log2(np.maximum(hertz, 60) / 800).astype(np.float32)
    tilt = TILT_DB_PER_OCTAVE / 20 * np.log(10) * octaves

    out = np.zeros(len(padded), dtype=np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    for first in range(0, spectra, BLOCK):
        rows = slice(first, min(first + BLOCK, spectra))
        gains = 0.5 * ((1 - shift[rows]) * low[spoken[rows]] + (1 + shift[rows]) * high[spoken[rows]])
        gains = gains.astype(np.float32) * np.exp(arousal[rows] * tilt)
        shaped = np.fft.irfft(np.fft.rfft(frames[rows] * window, axis=1) * gains, axis=1).astype(np.float32) * window
        for start, piece in zip(starts[rows], shaped, strict=True):
            out[start : start + WINDOW] += piece
    return out[WINDOW : WINDOW + len(source)] * (2 * HOP / WINDOW)


def _vowel_gains(hertz: np.ndarray, factor: float) -> np.ndarray:
    """float64 (vowels, bins): parallel resonances at the formants, 90-180 Hz wide, over a floor of -26 dB."""
    centres = VOWELS * factor
    widths = np.array([90.0, 120.0, 180.0])
    peaks = 1 / np.sqrt(1 + ((hertz[None, None] - centres[..., None]) / widths[:, None]) ** 2)
    return 0.05 + (np.array([1.0, 0.7, 0.5])[:, None] * peaks).sum(axis=1)
