"""Convert decoded frames of any color description to 8-bit RGB with BT.709 primaries.

Every frame is described by its matrix, transfer, primaries and range (ITU-T H.273). If the file
does not specify them, images of at least 720 rows or 1280 columns are treated as BT.709, and
smaller ones as BT.601, as video players do.

- Matrix and range are converted by swscale with accurate rounding.
- SDR code values are kept, because displays show all SDR transfers alike (BT.1886). The primaries
  of BT.601 and EBU differ too little from BT.709 to matter; wide ones (BT.2020, P3) are converted.
- PQ is absolute: 203 nits, the reference white of ITU-R BT.2408, become SDR white. Luminance above
  80 % of that is rolled off.
- HLG is relative to the display: it is shown on a display whose peak is SDR white, 203 nits, with
  the system gamma 1.2 of ITU-R BT.2100.
- Log, linear and other rare descriptions are refused with an error that names them.
"""

import tempfile
from pathlib import Path

import av
import av.filter
import numpy as np

from talker.clip import Color
from talker.errors import UserError

MATRICES = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
    11: "smpte2085",
    12: "chroma-derived-nc",
    13: "chroma-derived-c",
    14: "ictcp",
}
TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "srgb",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "pq",
    17: "smpte428",
    18: "hlg",
}
PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
"""Names of the code points of ITU-T H.273; others are reserved and treated as unspecified."""
SCALE_MATRICES = {
    "bt709": "bt709",
    "fcc": "fcc",
    "bt470bg": "bt601",
    "smpte170m": "bt601",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
}
"""FFmpeg's names of the matrices that its filter `scale` converts."""
SDR_TRANSFERS = {
    *("bt709", "gamma22", "gamma28", "smpte170m", "smpte240m", "iec61966-2-4", "bt1361e"),
    *("srgb", "bt2020-10", "bt2020-12"),
}
WIDE_PRIMARIES = {
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "smpte431": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "smpte432": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Chromaticities x, y of red, green and blue; the white point of all of them is taken as D65."""
BT709_PRIMARIES = (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)
D65 = (0.3127, 0.3290)
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])
HLG_GAMMA = 1.2
"""System gamma of HLG (ITU-R BT.2100)."""
SDR_GAMMA = 2.4
"""Gamma of SDR displays (ITU-R BT.1886)."""
REFERENCE_WHITE = 203.0
"""Luminance in nits that becomes SDR white (ITU-R BT.2408)."""
KNEE = 0.8
"""Fraction of SDR white above which light is rolled off."""
LUT_SIZE = 65
"""Nodes of the color table in each dimension."""
SCALE_FLAGS = "bilinear+accurate_rnd+full_chroma_int+bitexact"
"""Options of swscale; without accurate rounding every image becomes one level darker."""


def describe_color(frame: av.VideoFrame) -> Color:
    """Return the color description of a frame, guessed by its size where it is unspecified."""
    large = frame.height >= 720 or frame.width >= 1280
    rgb = frame.format.is_rgb
    matrix = "rgb" if rgb else MATRICES.get(frame.colorspace, "")
    return Color(
        matrix=matrix if rgb or matrix not in ("", "rgb") else "bt709" if large else "smpte170m",
        transfer=TRANSFERS.get(frame.color_trc, "bt709"),
        primaries=PRIMARIES.get(frame.color_primaries, "bt709"),
        full_range=rgb or frame.color_range == 2 or frame.format.name.startswith("yuvj"),
        guessed=not rgb and not matrix,
    )


def check_color(color: Color, path: Path) -> None:
    """Refuse a color description that `RgbConverter` cannot convert.

    Raises:
        UserError: the matrix or transfer is not supported.
    """
    if color.matrix != "rgb" and color.matrix not in SCALE_MATRICES:
        kind, name = "matrix", color.matrix
    elif color.transfer not in SDR_TRANSFERS | {"pq", "hlg"}:
        kind, name = "transfer", color.transfer
    else:
        return
    raise UserError(
        f"{path} has the color {kind} {name}, which cannot be converted. Export the video "
        "as BT.709."
    )


class RgbConverter:
    """Convert frames to RGB uint8 [height, width, 3]; frames of another size are scaled."""

    def __init__(self, height: int, width: int, path: Path) -> None:
        self.height, self.width, self.path = height, width, path
        self.key: object = None
        self.graph = av.filter.Graph()

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Return RGB uint8 [height, width, 3].

        Raises:
            UserError: the color description of the frame is not supported.
        """
        color = describe_color(frame)
        key = frame.width, frame.height, frame.format.name, color
        if key != self.key:
            check_color(color, self.path)
            self.key, self.graph = key, self._build(frame, color)
        self.graph.vpush(frame)
        return self.graph.vpull().to_ndarray()

    def _build(self, frame: av.VideoFrame, color: Color) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        scale = {"w": str(self.width), "h": str(self.height), "flags": SCALE_FLAGS}
        scale |= {"in_range": "full" if color.full_range else "limited", "out_range": "full"}
        if color.matrix != "rgb":
            scale["in_color_matrix"] = SCALE_MATRICES[color.matrix]
        neutral = {"color_trc": "bt709", "color_primaries": "bt709"}
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base,
            ),
            graph.add("setparams", **neutral),
            graph.add("scale", **scale),
        ]
        with tempfile.TemporaryDirectory() as folder:
            if needs_table(color):
                cube = Path(folder) / "table.cube"
                write_cube(cube, color_table(color))
                nodes.append(graph.add("format", "gbrp16le"))
                nodes.append(graph.add("lut3d", file=str(cube), interp="tetrahedral"))
                nodes.append(graph.add("scale", flags=SCALE_FLAGS))
            nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
            graph.link_nodes(*nodes).configure()
        return graph


def needs_table(color: Color) -> bool:
    """Return whether the color values must be converted after matrix and range."""
    return color.transfer not in SDR_TRANSFERS or color.primaries in WIDE_PRIMARIES


def color_table(color: Color) -> np.ndarray:
    """Return the BT.709 SDR value of each node as float64 [N, N, N, 3], indexed by R, G, B."""
    axis = np.linspace(0, 1, LUT_SIZE)
    signal = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    if color.transfer == "hlg":
        scene = hlg_to_scene(signal)
        light = scene * np.maximum(scene @ BT2020_LUMA, 1e-9)[..., None] ** (HLG_GAMMA - 1)
    elif color.transfer == "pq":
        light = roll_off(pq_to_nits(signal) / REFERENCE_WHITE)
    else:
        light = signal**SDR_GAMMA
    if color.primaries in WIDE_PRIMARIES:
        light = light @ primaries_to_bt709(color.primaries).T
    return np.clip(light, 0, 1) ** (1 / SDR_GAMMA)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """Return the scene light from 0 to 1 of HLG values from 0 to 1 (BT.2100, inverse OETF)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """Return the luminance in nits of PQ values from 0 to 1 (SMPTE ST 2084)."""
    m1, m2 = 2610 / 16384, 2523 / 32
    c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def roll_off(light: np.ndarray) -> np.ndarray:
    """Compress light [..., 3] above `KNEE` towards 1; the ratio of the channels is kept."""
    peak = light.max(axis=-1, keepdims=True)
    room = 1 - KNEE
    compressed = KNEE + room * (1 - np.exp(-np.maximum(peak - KNEE, 0) / room))
    return light * np.where(peak > KNEE, compressed / np.maximum(peak, 1e-9), 1)


def primaries_to_bt709(name: str) -> np.ndarray:
    """Return the [3, 3] matrix from linear RGB of these primaries to BT.709."""
    return np.linalg.inv(_rgb_to_xyz(BT709_PRIMARIES)) @ _rgb_to_xyz(WIDE_PRIMARIES[name])


def write_cube(path: Path, table: np.ndarray) -> None:
    """Write a color table [N, N, N, 3] as a .cube file, in which red varies fastest."""
    rows = table.transpose(2, 1, 0, 3).reshape(-1, 3)
    with path.open("w", encoding="ascii") as file:
        file.write(f"LUT_3D_SIZE {len(table)}\n")
        np.savetxt(file, rows, fmt="%.6f")


def _rgb_to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = D65
    white = np.array([x / y, 1, (1 - x - y) / y])
    return columns * np.linalg.solve(columns, white)
