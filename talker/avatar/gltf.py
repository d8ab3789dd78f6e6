"""Gaussians as a binary glTF file, with the extension KHR_gaussian_splatting.

The extension is the version that Khronos ratified in 2026
(https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting), in
which scales are linear; drafts of it stored logarithms. As in all glTF files, y points up and a
face looks along z. The metadata are in the extension KHR_xmp_json_ld.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from talker import __version__
from talker.avatar.gaussians import Gaussians
from talker.media.disclosure import NAMESPACES, Disclosure

SPLATS, METADATA = "KHR_gaussian_splatting", "KHR_xmp_json_ld"
FLOAT, POINTS, ARRAY_BUFFER = 5126, 0, 34962
"""Numbers of the component type, of the kind of primitive and of the buffer's use in glTF."""
METERS = 0.1
"""Length in meters, the unit of glTF, of 1 dm, the unit of avatars."""
TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
"""Types of accessors by their number of components."""


def save_glb(path: Path, gaussians: Gaussians, disclosure: Disclosure) -> None:
    """Write Gaussians [G, ...] to a .glb file.

    Args:
        path: file to write.
        gaussians: the Gaussians.
        disclosure: what the metadata state about the avatar.
    """
    means, quats, scales, opacities, sh = gaussians.arrays()
    attributes = {
        "POSITION": METERS * means,
        f"{SPLATS}:ROTATION": np.roll(quats, -1, axis=1)  # xyzw
        / np.linalg.norm(quats, axis=1, keepdims=True),
        f"{SPLATS}:SCALE": METERS * np.exp(scales),
        f"{SPLATS}:OPACITY": 1 / (1 + np.exp(-opacities[:, None])),
    }
    for k in range(sh.shape[1]):
        degree = int(k**0.5)
        attributes[f"{SPLATS}:SH_DEGREE_{degree}_COEF_{k - degree**2}"] = sh[:, k]
    arrays = [np.ascontiguousarray(array, "<f4") for array in attributes.values()]
    content = b"".join(array.tobytes() for array in arrays)
    ends = np.cumsum([array.nbytes for array in arrays]).tolist()
    primitive = {
        "mode": POINTS,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {SPLATS: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    packet = {"@context": NAMESPACES, "@id": "", **disclosure.properties()}
    scene: dict[str, Any] = {
        "asset": {
            "version": "2.0",
            "generator": f"talker {__version__}",
            "extensions": {METADATA: {"packet": 0}},
        },
        "extensionsUsed": [SPLATS, METADATA],
        "extensions": {METADATA: {"packets": [packet]}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": disclosure.avatar}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": [
            {
                "bufferView": i,
                "componentType": FLOAT,
                "count": len(array),
                "type": TYPES[array.shape[1]],
            }
            for i, array in enumerate(arrays)
        ],
        "bufferViews": [
            {
                "buffer": 0,
                "byteOffset": end - array.nbytes,
                "byteLength": array.nbytes,
                "target": ARRAY_BUFFER,
            }
            for array, end in zip(arrays, ends, strict=True)
        ],
        "buffers": [{"byteLength": len(content)}],
    }
    scene["accessors"][0] |= {"min": arrays[0].min(0).tolist(), "max": arrays[0].max(0).tolist()}
    text = json.dumps(scene, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 4)
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(content))
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(content), b"BIN\0")
        + content
    )
