"""Figures of a self-contained web page: images as data URIs, curves as inline SVG.

Colors come from the style sheet of the page: curves, texts and grid lines have CSS classes.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Integer, Real, UInt8
from markupsafe import Markup, escape

from talker.head.camera import project
from talker.media.images import jpeg_bytes

MARGIN = {"left": 46, "right": 12, "top": 10, "bottom": 36}


@dataclass(frozen=True)
class Curve:
    """A curve of a chart; nan in `y` leaves a gap."""

    name: str
    style: str
    """CSS class"""
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


def data_uri(content: bytes, kind: str) -> str:
    """Encode `content` of the MIME type `kind` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(pixels: UInt8[np.ndarray, "H W C"], quality: int = 90) -> str:
    """Encode RGB uint8 [H, W, 3] as the data URI of a JPEG."""
    return data_uri(jpeg_bytes(pixels, quality), "image/jpeg")


def embedded_video(path: Path) -> str:
    """Encode an mp4 file as a data URI."""
    return data_uri(path.read_bytes(), "video/mp4")


def chart(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    width: int = 1040,
    height: int = 240,
    log_y: bool = False,
    zero: bool = False,
) -> Markup:
    """Draw curves over common axes as an SVG that fills the available width.

    Args:
        log_y: logarithmic y axis; values <= 0 are left out.
        zero: include 0 in the y axis and mark it.

    Raises:
        ValueError: no curve has a finite point.
    """
    ys = [np.asarray(curve.y, np.float64) for curve in curves]
    xs = [np.asarray(curve.x, np.float64) for curve in curves]
    if log_y:
        ys = [np.log10(np.where(y > 0, y, np.nan)) for y in ys]
    all_x, all_y = np.concatenate(xs), np.concatenate(ys)
    if not np.isfinite(all_y).any():
        raise ValueError("A chart needs at least one finite value.")
    x0, x1 = float(np.nanmin(all_x)), float(np.nanmax(all_x))
    y0, y1 = float(np.nanmin(all_y)), float(np.nanmax(all_y))
    if zero:
        y0, y1 = min(y0, 0.0), max(y1, 0.0)
    pad = 0.06 * (y1 - y0) or 0.5
    y0, y1 = y0 - pad * (y0 != 0), y1 + pad
    x1 = x1 if x1 > x0 else x0 + 1
    left, top = MARGIN["left"], MARGIN["top"]
    right, bottom = width - MARGIN["right"], height - MARGIN["bottom"]

    def px(x: np.ndarray | float) -> np.ndarray | float:
        return left + (x - x0) / (x1 - x0) * (right - left)

    def py(y: np.ndarray | float) -> np.ndarray | float:
        return bottom - (y - y0) / (y1 - y0) * (bottom - top)

    kind = "half" if width <= height * 2.5 else "across"
    parts = [f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img">']
    parts.append(f"<title>{escape(y_label)} over {escape(x_label)}</title>")
    for tick in _decades(y0, y1) if log_y else _ticks(y0, y1, 4):
        y = py(tick)
        mark = ' class="zero"' if tick == 0 and zero else ' class="grid"'
        parts.append(f'<line{mark} x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_number(10**tick if log_y else tick)}</text>"
        )
    for tick in _ticks(x0, x1, width // 90):
        at = f'x="{px(tick):.1f}" y="{bottom + 16}"'
        parts.append(f'<text {at} text-anchor="middle">{_number(tick)}</text>')
    at = f'x="{right}" y="{height - 1}"'
    parts.append(f'<text class="axis" {at} text-anchor="end">{escape(x_label)}</text>')
    for curve, x, y in zip(curves, xs, ys, strict=True):
        parts.append(
            f'<path class="{curve.style}" d="{_path(px(x), py(y))}">'
            f"<title>{escape(curve.name)}</title></path>"
        )
    return Markup("".join([*parts, "</svg>"]))


def draw_points(
    pixels: UInt8[np.ndarray, "H W 3"], points: Real[np.ndarray, "P 2"], color: tuple[int, int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Return a copy of RGB uint8 [H, W, 3] with a dot at each point [N, 2]."""
    canvas = pixels.copy()
    radius = max(1.0, max(pixels.shape[:2]) / 200)
    for point in points:
        cv2.circle(canvas, _fixed(point), round(radius * 16), color, -1, cv2.LINE_AA, shift=4)
    return canvas


def draw_mesh(
    pixels: UInt8[np.ndarray, "H W 3"],
    vertices: Real[np.ndarray, "V 3"],
    faces: Integer[np.ndarray, "F 3"],
    viewmat: Real[np.ndarray, "4 4"],
    K: Real[np.ndarray, "3 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Return a copy of RGB uint8 [H, W, 3] under a transparent, shaded mesh.

    Args:
        vertices: world points [V, 3].
        faces: vertex ids [F, 3], in either orientation; near faces are drawn last.
        viewmat: world to OpenCV camera [4, 4].
        K: [3, 3], pixels.
    """
    camera = vertices @ viewmat[:3, :3].T + viewmat[:3, 3]
    corners = camera[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    shades = np.round(60 + 190 * np.abs(normals[:, 2])).astype(int)
    polygons = np.round((project(vertices, viewmat[None], K)[0][faces] - 0.5) * 16).astype(np.int32)
    clay = pixels.copy()
    for f in np.argsort(-corners[:, :, 2].mean(1), kind="stable"):
        cv2.fillConvexPoly(clay, polygons[f], [int(shades[f])] * 3, cv2.LINE_AA, shift=4)
    return cv2.addWeighted(clay, 0.7, pixels, 0.3, 0)


def blend(pixels: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Blend `color` half into the pixels of RGB uint8 [H, W, 3] where bool `mask` [H, W] is set."""
    mixed = (pixels.astype(np.uint16) + np.array(color, np.uint16)) // 2
    return np.where(mask[..., None], mixed, pixels).astype(np.uint8)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Convert pixel coordinates (centers at +0.5) to OpenCV's 1/16 pixels (centers at 0)."""
    x, y = np.round((point - 0.5) * 16).astype(int)
    return int(x), int(y)


def _path(x: np.ndarray | float, y: np.ndarray | float) -> str:
    """Return an SVG path through the finite points, with gaps at the others."""
    steps, pen_down = [], False
    for a, b in zip(np.atleast_1d(x), np.atleast_1d(y), strict=True):
        finite = bool(np.isfinite(b))
        if finite:
            steps.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
        pen_down = finite
    return "".join(steps)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return about `about` round numbers within low .. high."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return log10 of 1, 2 and 5 times powers of ten within low .. high."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    marks = [decade + math.log10(k) for decade in decades for k in (1, 2, 5)]
    return [mark for mark in marks if low <= mark <= high]


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value / 1000:,.4g}k"
