"""Options of `cmudrn infer`, but for those that other commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Batch",
    "Format",
    "GateConfidence",
    "GateOn",
    "Heatmap",
    "InFlight",
    "Loops",
    "MaxPixels",
    "Out",
    "OutputChoice",
    "Overlap",
    "Overwrite",
    "PngLevel",
    "PrecisionName",
    "ProfileFile",
    "Provenance",
    "Quality",
    "Report",
    "Resume",
    "SkipExisting",
    "Sources",
    "Strip",
    "Tile",
]

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC",
        help="Images, clips, folders with all below them; or a camera (/dev/video0, rtsp://...); or - for "
        "frames on standard input.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help="Folder, or file for one image. Default: photos/ to photos-restored/, a.jpg to a-restored.jpg",
    ),
]
Loops = Annotated[
    int,
    typer.Option(
        metavar="1..7", help="Recursions: 3 are best under heavy weather. Time grows as their square."
    ),
]
OutputChoice = Annotated[
    str,
    typer.Option(
        "--output", metavar="fused|rain|snow", help="Which image: both networks' fused, or one's alone."
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Compute in nothing else, engines too; bf16 where `cmudrn parity-check` has passed it. Default: "
        "the best engine's; without one fp32, or what OpenVINO is certified in.",
        show_default=False,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Side of the tiles that larger images are cut into, at most. Default: 768, for native 2048, or "
        "an engine's own.",
        show_default=False,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Shared by neighbouring tiles. Default: the least that keeps 60 dB against the whole.",
        show_default=False,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tiles restored at once, at most. Default: 1, or an engine's own.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace targets that are there already.")]
SkipExisting = Annotated[
    bool,
    typer.Option("--skip-existing", help="Leave them, whoever wrote them, and restore the rest."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in OUT: do what it has not done, and what has changed since.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Write jpeg, png, tiff, webp, gif, avif or heif. Default: as the source.",
        show_default=False,
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        metavar="1..100", help="Of JPEG, WebP, AVIF and HEIF files. Default: 95.", show_default=False
    ),
]
PngLevel = Annotated[
    int | None,
    typer.Option(
        metavar="0..9",
        help="How long to look for a shorter PNG file; the pixels are the same. Default: 6.",
        show_default=False,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Refuse larger images undecoded. Default: 400,000,000.", show_default=False
    ),
]
Strip = Annotated[
    bool,
    typer.Option(
        "--strip",
        help="Keep nothing beside the pixels but the ICC profile and the orientation, no time either.",
    ),
]
Provenance = Annotated[
    bool,
    typer.Option(
        "--provenance", help="Write into XMP what restored the image: model, weights, engine, date."
    ),
]
Heatmap = Annotated[
    bool,
    typer.Option("--heatmap", help="Write a map of what was changed beside each: a.jpg, a-heatmap.png."),
]
InFlight = Annotated[
    float | None,
    typer.Option(
        metavar="MEGAPIXELS",
        help="Of all images in memory at once, some 6 bytes a pixel; a larger one goes alone. Default: 64.",
        show_default=False,
    ),
]
GateOn = Annotated[
    bool,
    typer.Option(
        "--gate",
        help="Leave photographs without weather as they are: copied, and reported as clean.",
    ),
]
GateConfidence = Annotated[
    float | None,
    typer.Option(
        metavar="0..1",
        help="With --gate: how sure it must be that there is no weather. Default: as fitted with the "
        "weights.",
        show_default=False,
    ),
]
Report = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="FILE|-",
        help="Write a report there; - is the standard output.",
        show_default=False,
    ),
]

ProfileFile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="What `cmudrn tune` found best here: loops, backend, batch and so on. Options given win.",
        show_default=False,
    ),
]
