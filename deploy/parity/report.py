"""What parity-check found, as rows, as JSON, and as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from string import Template
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from cmudrn import __version__
from cmudrn.deploy.parity.measure import Checked, ParityJob, Verdict
from cmudrn.deploy.parity.tally import WorstPlace
from cmudrn.engines.certificate import shown_db
from cmudrn.wording import counted

__all__ = ["HEADINGS", "html_page", "reason", "table_row", "to_json"]

HEADINGS = ("images", "PSNR min", "mean", "largest", "off by 1", "by more", "truth dB", "SSIM", "verdict")
ENLARGED = 4  # pixels a side that one of a place becomes
MOST_AMPLIFIED = 64  # one grey level off is then a quarter of the scale
# Black over violet and orange to pale yellow: darker is less, also in grey and to the colour-blind.
COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cmudrn parity-check</title>
<style>
:root { color-scheme: light dark; --line: #8886; --good: #176b2c; --bad: #b3261e; --soft: #666; }
@media (prefers-color-scheme: dark) { :root { --good: #6fd08c; --bad: #ff8a80; --soft: #aaa; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
.passed { color: var(--good); } .below, .failed { color: var(--bad); font-weight: 600; }
.skipped, .soft, figcaption { color: var(--soft); }
h2 { font-size: 1.1rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { font-size: .85rem; }
.place { display: flex; flex-wrap: wrap; gap: .5rem; }
.place div { font-size: .85rem; }
img { display: block; max-width: 100%; image-rendering: pixelated; }
.bar { height: .6rem; background: linear-gradient(to right, $gradient); }
</style>
</head>
<body>
<h1>Parity with PyTorch in float32</h1>
<p>$summary</p>
<div class="scroll"><table>
<thead><tr><th>engine</th>$headings</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
<p class="soft">PSNR in dB over all values, of the worst image and on the mean; the largest difference in
grey levels of 255; shares of values that are one level off, or more; what the mean PSNR and SSIM to the
ground truth change by, where there is one. Made by cmudrn $version.</p>
$sections
</body>
</html>
""")


def table_row(checked: Checked) -> tuple[str, ...]:
    """What stands below HEADINGS."""
    found = checked.certificate
    if found is None:
        return (*[""] * (len(HEADINGS) - 1), checked.verdict.value)
    psnr = [
        "equal" if value is None else shown_db(value) for value in (found.psnr_min_db, found.psnr_mean_db)
    ]
    truth = "" if found.truth_psnr_change_db is None else f"{found.truth_psnr_change_db:+.4f}"
    ssim = "" if found.truth_ssim_change is None else f"{found.truth_ssim_change:+.5f}"
    shares = map(share, (found.off_by_one, found.off_by_more))
    return (str(found.images), *psnr, f"{found.difference:.3g}", *shares, truth, ssim, checked.verdict.value)


def share(value: float) -> str:
    """Nothing is nothing, and what is little isn't."""
    if value == 0:
        return "0"
    return "<0.01%" if value < 0.0001 else f"{value:.2%}"


def reason(checked: Checked) -> str:
    """Why it isn't passed, and with which limit it would be where one is enough; empty where it is."""
    if checked.error:
        return str(checked.error).removeprefix(f"{checked.name}: ")
    if checked.certificate is None:
        return ""
    allowed = checked.certificate.difference_to_allow
    way_out = [] if allowed is None else [f"`--max-difference {allowed}` would certify it"]
    return "; ".join(checked.certificate.failures + way_out)


def to_json(job: ParityJob, results: Sequence[Checked]) -> dict[str, Any]:
    """All but the pictures, in plain values."""
    return {
        "weights": {"name": job.weights, "sha256": job.checkpoint.sha256},
        "limits": asdict(job.limits),
        "float32_limits": asdict(job.float32_limits),
        "images": [source.name for source in job.images.sources],
        "results": [
            {
                "name": one.name,
                "height": one.spec.height,
                "width": one.spec.width,
                "verdict": one.verdict.value,
                "reason": reason(one),
                "certificate": asdict(one.certificate) if one.certificate else None,
            }
            for one in results
        ],
    }


def html_page(job: ParityJob, results: Sequence[Checked]) -> str:
    """The table, then of each engine that differs its worst places and a map of its differences."""
    limits = job.limits
    passed = sum(one.verdict is Verdict.PASSED for one in results)
    summary = (
        f"{passed} of {len(results)} passed, on {counted(len(job.images), 'image')}, with weights "
        f"{job.weights} ({job.checkpoint.sha256[:12]}). Limits: PSNR of the worst image at least "
        f"{limits.psnr_db:g} dB; no value more than {limits.difference:g} grey levels off, in float32 "
        f"{job.float32_limits.difference:g}; mean PSNR to the "
        f"ground truth changed by at most {limits.truth_db:g} dB."
    )
    return PAGE.substitute(
        summary=escape(summary),
        headings="".join(f"<th>{escape(name)}</th>" for name in HEADINGS),
        rows="\n".join(map(_row, results)),
        sections="\n".join(map(_section, results)),
        gradient=", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in COLOURS),
        version=escape(__version__),
    )


def _row(checked: Checked) -> str:
    *figures, verdict = table_row(checked)
    cells = "".join(f"<td>{escape(figure)}</td>" for figure in figures)
    cells += f'<td class="{checked.verdict.value}">{escape(verdict)}</td>'
    return f"<tr><td>{escape(checked.name)}</td>{cells}</tr>"


def _section(checked: Checked) -> str:
    parts = [f"<h2>{escape(checked.name)}</h2>"]
    if checked.certificate:
        parts.append(f'<p class="soft">{escape(checked.certificate.measured_on)}</p>')
    if why := reason(checked):
        parts.append(f'<p class="{checked.verdict.value}">{escape(why)}</p>')
    if checked.certificate and not checked.places:
        parts.append("<p>Every value is equal.</p>")
    parts += [_place(place, first=number == 0) for number, place in enumerate(checked.places)]
    if checked.heatmap is not None:
        parts.append(_heatmap(checked.places[0].image, checked.heatmap))
    return f"<section>{''.join(parts)}</section>"


def _place(place: WorstPlace, *, first: bool) -> str:
    most = float(place.differences.max())
    factor = max(1, min(MOST_AMPLIFIED, int(255 / most))) if most else MOST_AMPLIFIED
    amplified = np.clip(place.differences * factor, 0, 255).astype(np.uint8)
    pictures = (
        ("PyTorch", place.reference),
        ("backend", place.restored),
        (f"difference x {factor}", amplified),
    )
    why = "around the worst value" if first else "one of the worst images, where it differs most"
    caption = (
        f"{place.image}, {why}, from row {place.top} and column {place.left} on; "
        f"the whole image: {shown_db(place.psnr_db)} dB, largest difference {place.difference:.3g}"
    )
    shown = "".join(
        f"<div>{_image(enlarged(pixels), f'{name}: {caption}')}{escape(name)}</div>"
        for name, pixels in pictures
    )
    return f'<figure><div class="place">{shown}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _heatmap(name: str, levels: NDArray[np.float32]) -> str:
    most = float(levels.max())
    caption = f"{name}: differences from 0 (black) to {most:.3g} grey levels"
    return (
        f"<figure>{_image(coloured(levels / most), caption)}"
        f'<div class="bar" style="max-width: {levels.shape[1]}px"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel a square."""
    return pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def coloured(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[H, W] of 0 to 1 to [H, W, 3] of COLOURS."""
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(shares, stops, colour) for colour in COLOURS.T]
    return np.stack(channels, axis=2).astype(np.uint8)


def _image(pixels: NDArray[np.uint8], text: str) -> str:
    """Inlined, as a PNG: what is shown is what was measured."""
    picture = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation="srgb")
    data = base64.b64encode(picture.pngsave_buffer(compression=9, strip=True)).decode()
    height, width = pixels.shape[:2]
    return f'<img width="{width}" height="{height}" alt="{escape(text)}" src="data:image/png;base64,{data}">'
