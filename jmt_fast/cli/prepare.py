"""`synth` and `prepare`: collections made, and collections checked."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import Json

if TYPE_CHECKING:
    from jmt_fast.data import Prepared
    from jmt_fast.data.layouts import Found

AFEW_VA_FPS = 25.0  # jmt_fast.data.layouts has it too; importing that here would slow `--help`

prepare = typer.Typer(
    help="Check a data set, reconcile its counts, draw folds, and write the manifest that `train` takes.",
    no_args_is_help=True,
)
app.add_typer(prepare, name="prepare")


class Layout(StrEnum):
    plain = "plain"
    affwild2 = "affwild2"


def _table(path: Path) -> Path:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise typer.BadParameter(f"{path}: a manifest is a .csv or .parquet file")
    return path


Root = Annotated[Path, typer.Argument(help="Folder of the data set.", metavar="ROOT")]
Out = Annotated[Path, typer.Option(help="The manifest to write, .csv or .parquet.", callback=_table)]
Folds = Annotated[int, typer.Option(min=2, help="Folds by subject and video, balanced by labelled frames.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the folds.")]


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder for the data set.")],
    videos: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each.")] = 30.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Width and height in pixels.")] = 160,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second.")] = 30,
    layout: Annotated[
        Layout,
        typer.Option(help="plain: videos and a manifest; affwild2: face crops too, and its irregularities."),
    ] = Layout.plain,
) -> None:
    """Make synthetic talking-face videos with annotations in Aff-Wild2's format."""
    from jmt_fast.cli import show
    from jmt_fast.data.synthetic import synthesise, synthesise_affwild2

    with show.bar("Rendering videos") as progress:
        if layout is Layout.affwild2:
            trials = synthesise_affwild2(out, videos, seconds, seed, size=size, fps=fps, progress=progress)
        else:
            synthesise(out, videos, seconds, seed, size=size, fps=fps, progress=progress)
    if layout is Layout.affwild2:
        print(f"{videos} synthetic videos, {trials} trials; next: jmt-fast prepare affwild2 {out} --out manifest.csv")
    else:
        print(f"{videos} synthetic videos; manifest: {out / 'manifest.csv'}")


@prepare.command()
def affwild2(root: Root, out: Out, folds: Folds = 5, seed: Seed = 0, json: Json = False) -> None:
    """Aff-Wild2: videos, cropped_aligned, and the annotations of the VA Estimation Challenge."""
    from jmt_fast.data import find_affwild2

    _prepare(find_affwild2(root), "affwild2", out, folds, seed, json)


@prepare.command("afew-va")
def afew_va(
    root: Root,
    out: Out,
    fps: Annotated[float, typer.Option(min=1, help="Rate of the pictures, which the data set does not tell.")] = (
        AFEW_VA_FPS
    ),
    folds: Folds = 5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """AFEW-VA: a folder of pictures and a JSON for each clip; no sound, no splits."""
    from jmt_fast.data import find_afew_va

    _prepare(find_afew_va(root, fps), "afew-va", out, folds, seed, json)


@prepare.command()
def manifest(
    source: Annotated[Path, typer.Argument(help="Your own manifest, .csv or .parquet.", metavar="MANIFEST")],
    out: Out,
    folds: Folds = 5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Any other collection, from a manifest: the same checks and folds."""
    from jmt_fast.data import read_manifest
    from jmt_fast.data.layouts import Found

    _prepare(Found(read_manifest(source)), "manifest", out, folds, seed, json)


def _prepare(found: Found, layout: str, out: Path, folds: int, seed: int, json: bool) -> None:
    from jmt_fast.cli import show
    from jmt_fast.data import prepare as check
    from jmt_fast.data import write_manifest
    from jmt_fast.errors import DataError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}; pass another --out") from error
    with show.bar("Checking trials") as progress:
        prepared = check(found, folds, seed, progress)
    if prepared.recordings:
        write_manifest(prepared.recordings, out)
    if json:
        written = str(out) if prepared.recordings else None
        show.as_json({"layout": layout, "manifest": written, "seed": seed, **prepared.as_dict()})
    else:
        _print(prepared)
    for line in prepared.warnings:
        print(f"warning: {line}", file=sys.stderr)
    if prepared.recordings and not json:
        print(f"{len(prepared.recordings)} trials written to {out}")
    show.finish(prepared.failed, len(prepared.recordings) + len(prepared.failed), "trials")


def _print(prepared: Prepared) -> None:
    from jmt_fast.cli import show

    if not prepared.recordings:
        return
    show.table(
        "What was found",
        ("split", "trials", "videos", "rows", "labelled", "frames", "JPEGs", "no JPEG"),
        [(split or "none", *row.values()) for split, row in prepared.splits().items()],
    )
    counted = [(each.name, prepared.counts[each.name]) for each in prepared.recordings]
    rows = [
        (name, "; ".join(counts.differences), counts.rows, counts.frames, "-" if counts.jpegs is None else counts.jpegs)
        for name, counts in counted
        if counts.differences
    ]
    if rows:
        title = f"Counts that differ: {len(rows)} of {len(counted)} trials"
        show.table(title, ("trial", "difference", "rows", "frames", "JPEGs"), rows, left=2)
    if folds := prepared.folds():
        header = ("fold", "trials", "videos or subjects", "labelled frames")
        show.table("Folds", header, [tuple(row.values()) for row in folds])
