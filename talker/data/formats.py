"""Readers and writers of the files of a dataset folder (au.csv, poses and transforms files), and
readers of files that are pinned by a checksum.

Every reader checks types, shapes and ranges, and that all values are finite, so that later code
does not have to. Writers write to the path they are given; callers pass a scratch path of
`talker.core.files`. `talker.data.layout` handles masks, `talker.head.landmarks68` handles .lms
files, and `talker.clip` handles clip.json and arrays.
"""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from talker.clip import FPS, check_regular, load_arrays, load_json, load_text
from talker.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.jit import ScriptModule

AU_MAX = 5.0
"""Largest intensity of an action unit: the upper end of OpenFace's scale."""
AU45_SATURATION = 2.0
"""AU45 intensity from which the AD-NeRF family and the avatar treat an eye as closed."""
AU45_BLINK = 0.5 * AU45_SATURATION
"""AU45 intensity above which a frame counts as part of a blink."""
BROW_UNITS = {"AU01_r": 0.5, "AU02_r": 0.5, "AU04_r": -1.0}
"""Columns of the inner brow raiser, the outer brow raiser and the brow lowerer, and their weights
in the raise of the brows, a single number."""
AU_HEADER = ("frame", "timestamp", "confidence", "success")
"""First columns of au.csv. The intensities of action units follow."""
MAX_DISTANCE = 1e4
"""Largest translation and vertex coordinate that is accepted, in dm: 1 km."""
EXPRESSIONS = 79
"""Number of columns of `exp` in published track_params.pt files."""
MESH_POINTS = 478
"""Number of points of the face mesh that `talker landmarks` detects."""


@dataclass
class Shots:
    """The shots of a clip of T frames, and why frames are rejected."""

    cuts: list[int]
    """first frame of each new shot, increasing"""
    reasons: list[str]
    """[T], why each frame is rejected; empty for accepted frames"""

    @property
    def usable(self) -> np.ndarray:
        """Whether each frame is accepted, bool [T]."""
        return np.array([not reason for reason in self.reasons], bool)

    @property
    def accepted_frames(self) -> np.ndarray:
        """Sorted indices of the frames that are not rejected."""
        return np.flatnonzero(self.usable)

    def reject(self, ids: np.ndarray, reason: str) -> None:
        """Reject the frames `ids`."""
        for i in ids:
            self.reasons[i] = reason


@dataclass(frozen=True)
class FocalPrior:
    """What was known about the focal length before it was estimated."""

    given: bool
    """whether the user specified the focal length"""
    bounds: tuple[float, float]
    """bounds of an estimated focal length, in multiples of the longer image side"""
    distance: float
    """expected distance from camera to head in dm"""
    distance_sigma: float
    """standard deviation of the logarithm of the distance"""


@dataclass(frozen=True)
class HeadFit:
    """What `talker fit` estimates from the landmarks of T frames, N of which are accepted."""

    shots: Shots
    """the shots, with the frames that are rejected so far"""
    viewmats: np.ndarray
    """[N, 4, 4], OpenCV world-to-camera matrices of the accepted frames, dm"""
    focal: float
    """focal length in pixels"""
    focal_curve: dict[float, float]
    """residual in pixels with the focal length multiplied by the key"""
    prior: FocalPrior
    """what was known about the focal length"""
    mesh: np.ndarray
    """[478, 3] dm, mean mesh of the clip"""
    stable: np.ndarray
    """int [S], indices of the rigid points that determine the poses"""
    weights: np.ndarray
    """[S], weights of the rigid points"""
    unit: float
    """size of a detector unit in pixels (`talker.head.poses`)"""
    expression: np.ndarray
    """[T, E] dm, weights of `basis`; 0 in rejected frames"""
    basis: np.ndarray
    """[E, 478, 3], orthonormal deviations from `mesh`"""
    model: str
    """name of the head model"""
    identity: np.ndarray
    """[I], identity weights of the head model"""
    vertices: np.ndarray
    """[V, 3] dm, head with a little hair, and upper neck"""
    faces: np.ndarray
    """int [F, 3], triangles of `vertices`"""


@dataclass(frozen=True)
class TrackParams:
    """Head poses, expressions and mean head geometry of a clip of T frames."""

    euler: np.ndarray
    """float32 [T, 3], radians, in the convention of the AD-NeRF tracker"""
    trans: np.ndarray
    """float32 [T, 3], dm"""
    focal: float
    """focal length in pixels of the clip's frames"""
    expression: np.ndarray
    """float32 [T, E], expression coefficients"""
    valid: np.ndarray
    """bool [T]; all true where the tracker stored none"""
    vertices: np.ndarray | None
    """float32 [V, 3], head mesh in dm, mean over the frames; None where none is stored"""
    faces: np.ndarray | None
    """int64 [F, 3], triangles of the mesh; None where none are stored"""


@dataclass(frozen=True)
class Transforms:
    """Content of a transforms file: a camera and the poses of N listed frames."""

    focal: float
    """focal length in pixels"""
    center: tuple[float, float]
    """principal point (x, y) in pixels"""
    ids: np.ndarray
    """int64 [N], numbers of the frames"""
    audio_ids: np.ndarray
    """int64 [N], numbers of the speech windows"""
    matrices: np.ndarray
    """float64 [N, 4, 4], camera to world, with translations in m"""


@dataclass(frozen=True)
class TrackReport:
    """The facts of track_report.json by which the tracking is judged."""

    frames: int
    tracked: int
    """number of frames in which the head is tracked"""
    focal: float
    """focal length in pixels"""
    focal_at_bound: bool
    face_width: float
    """pixels"""
    residual_percent: float
    """distance to the landmarks, as a percentage of the face width"""
    c1: float | None
    """difference of the motion from that of the image over 1 frame, in pixels"""
    c5: float | None
    """the same over 5 frames"""
    yaw_range: float
    """degrees"""
    shots: int
    shot_residuals: list[float]
    """pixels, for each shot with a residual"""
    reasons: list[str]
    """for each rejected frame"""
    cut_by_border: int | None
    """number of frames in which the border cuts off the face"""


def eye_closure(au45: np.ndarray) -> np.ndarray:
    """Map AU45 intensities to the avatar's eye closure float32 [T], 0 open to 1 closed."""
    return (np.clip(au45, 0, AU45_SATURATION) / AU45_SATURATION).astype(np.float32)


def brow_raise(units: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Map intensities to the raise of the brows float32 [T], -1 fully lowered to 1 fully raised.

    Args:
        units: intensities [T] of action units by column. Missing columns count as 0.

    Returns:
        The raise, or None if `units` contains none of the columns of `BROW_UNITS`.
    """
    present = [weight * units[name] for name, weight in BROW_UNITS.items() if name in units]
    return (np.sum(present, axis=0) / AU_MAX).astype(np.float32) if present else None


def brow_units(raised: np.ndarray) -> dict[str, np.ndarray]:
    """Map the raise of the brows [T] to intensities of `BROW_UNITS`, the inverse of `brow_raise`.

    It does not distinguish the inner from the outer part of the brows, so both raisers have the
    same intensity.
    """
    up, down = (AU_MAX * np.clip(sign * raised, 0, 1) for sign in (1, -1))
    return {"AU01_r": up, "AU02_r": up, "AU04_r": down}


def read_table(path: Path | zipfile.Path) -> dict[str, list[str]]:
    """Read a csv file with a header, as columns of text; blanks around names are removed.

    Raises:
        UserError: the file is missing, is not a csv table, or its rows have different lengths.
    """
    try:
        names, *rows = csv.reader(load_text(path).splitlines())
        names = [name.strip() for name in names]
        rows = [row for row in rows if row]
        for number, row in enumerate(rows, 1):
            if len(row) != len(names):
                raise ValueError(f"row {number} has {len(row)} values for {len(names)} columns")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a csv table with a header ({error}).") from error
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


def read_au45(path: Path | zipfile.Path) -> np.ndarray:
    """Read the AU45 intensities float32 [T], from 0 to 5, of an OpenFace csv.

    Raises:
        UserError: the file is missing or has no column AU45_r of numbers from 0 to 5.
    """
    return _au45(path, read_table(path))


def _au45(path: Path | zipfile.Path, table: dict[str, list[str]]) -> np.ndarray:
    """Return what `read_au45` does, from a table that was already read."""
    if "AU45_r" not in table:
        raise UserError(
            f"{path} has no column AU45_r. Its columns are: {', '.join(table) or 'none'}. Run "
            "`talker blink`, or use a table that OpenFace wrote."
        )
    return numbers(path, "AU45_r", table["AU45_r"], 0, AU_MAX).astype(np.float32)


def read_eye(path: Path | zipfile.Path) -> np.ndarray:
    """Read the avatar's eye input float32 [T, 2] from an OpenFace csv.

    Returns:
        The eye closure, 0 open to 1 closed, and the raise of the brows, -1 to 1. Without a column
        of `BROW_UNITS` that has values, the brows are relaxed (0).

    Raises:
        UserError: the file is missing, has no column AU45_r, or has values outside 0 to 5.
    """
    table = read_table(path)
    closure = eye_closure(_au45(path, table))
    units = {
        name: numbers(path, name, table[name], 0, AU_MAX)
        for name in BROW_UNITS
        if has_values(table, name)
    }
    raised = brow_raise(units)
    return np.stack([closure, np.zeros_like(closure) if raised is None else raised], axis=1)


def has_values(table: Mapping[str, list[str]], name: str) -> bool:
    """Return whether a table has a column in which at least one cell is not empty or nan."""
    return any(not is_missing(cell) for cell in table.get(name, []))


def is_missing(cell: str) -> bool:
    """Return whether a cell of a table is empty or nan, as programs write what they do not know."""
    return cell.strip().lower() in ("", "nan")


def numbers(
    path: Path | zipfile.Path, name: str, column: list[str], low: float, high: float
) -> np.ndarray:
    """Convert a column of text to float64 [T].

    Raises:
        UserError: a value is not a number from `low` to `high`.
    """
    for row, value in enumerate(column):
        try:
            inside = low <= float(value) <= high
        except ValueError:
            inside = False
        if not inside:
            raise UserError(
                f"{path} has the value {value.strip()[:40]!r} in row {row} of the column "
                f"{name}. It must be a number from {low:g} to {high:g}."
            )
    return np.array(column, float)


def write_action_units(path: Path, units: Mapping[str, np.ndarray], valid: np.ndarray) -> None:
    """Write intensities of action units as an OpenFace csv.

    A blank precedes each name, as most readers of the AD-NeRF family expect.

    Args:
        path: file to write.
        units: intensities [T] by column.
        valid: bool [T]; the other frames have success 0.
    """
    rows = [", ".join([*AU_HEADER, *units])]
    for i, (ok, *values) in enumerate(zip(valid, *units.values(), strict=True)):
        first = f"{i + 1}, {i / FPS:.2f}, {int(ok):.2f}, {int(ok)}"
        rows.append(", ".join([first, *(f"{value:.3f}" for value in values)]))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_shots(path: Path, shots: Shots) -> None:
    """Write a shots.npz."""
    np.savez(path, cuts=np.array(shots.cuts, np.int64), reasons=np.array(shots.reasons, str))


def read_shots(path: Path, frames: int) -> Shots:
    """Read the shots.npz of a clip of `frames` frames.

    Raises:
        UserError: the file is missing or damaged, or does not fit the clip.
    """
    return _shots(StoredArrays(path, "talker shots"), frames)


def write_fit(path: Path, fit: HeadFit) -> None:
    """Write a fit.npz, in full precision."""
    curve = np.array(list(fit.focal_curve.items()), float).reshape(-1, 2)
    prior = fit.prior
    np.savez(
        path,
        cuts=np.array(fit.shots.cuts, np.int64),
        reasons=np.array(fit.shots.reasons, str),
        viewmats=fit.viewmats,
        focal=np.array([fit.focal]),
        focal_curve=curve,
        prior=np.array([prior.given, *prior.bounds, prior.distance, prior.distance_sigma], float),
        mesh=fit.mesh,
        stable=fit.stable.astype(np.int64),
        weights=fit.weights,
        unit=np.array([fit.unit]),
        expression=fit.expression,
        basis=fit.basis,
        model=np.array([fit.model]),
        identity=fit.identity,
        vertices=fit.vertices,
        faces=fit.faces.astype(np.int64),
    )


def are_rigid(viewmats: np.ndarray, tolerance: float) -> bool:
    """Return whether matrices [N, 4, 4] consist of rotations and translations.

    Args:
        viewmats: matrices.
        tolerance: largest deviation of a rotation times its transpose from the identity.
    """
    turns = viewmats[:, :3, :3]
    deviation = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(initial=0)
    turned = bool((np.linalg.det(turns) > 0).all() and (viewmats[:, 3] == [0, 0, 0, 1]).all())
    return turned and bool(deviation < tolerance)


def read_fit(path: Path, frames: int) -> HeadFit:
    """Read the fit.npz of a clip of `frames` frames.

    Raises:
        UserError: the file is missing or damaged, does not fit the clip, or holds values that are
            not finite or out of range.
    """
    stored = StoredArrays(path, "talker fit")
    shots = _shots(stored, frames)
    count = len(shots.accepted_frames)
    viewmats = stored.numbers("viewmats", (count, 4, 4))
    if not count or not are_rigid(viewmats, 1e-6) or (viewmats[:, 2, 3] <= 0).any():
        stored.refuse("must have a pose in front of the camera for at least one frame")
    expression = stored.numbers("expression", (frames, None))
    rank = expression.shape[1]
    stable = stored.numbers("stable", (None,), 0, MESH_POINTS - 1, "iu")
    if len(stable) < 4 or (np.diff(stable) <= 0).any():
        stored.refuse("must list at least four increasing indices in the array 'stable'")
    vertices = stored.numbers("vertices", (None, 3))
    given, low, high, distance, sigma = stored.numbers("prior", (5,), 0, 1e6).tolist()
    return HeadFit(
        shots=shots,
        viewmats=viewmats,
        focal=float(stored.numbers("focal", (1,), 1e-3, 1e6)[0]),
        focal_curve=dict(stored.numbers("focal_curve", (None, 2), 0, 1e6).tolist()),
        prior=FocalPrior(bool(given), (low, high), distance, sigma),
        mesh=stored.numbers("mesh", (MESH_POINTS, 3)),
        stable=stable,
        weights=stored.numbers("weights", (len(stable),), 1e-9, 1e6),
        unit=float(stored.numbers("unit", (1,), 1e-6, 1e6)[0]),
        expression=expression,
        basis=stored.numbers("basis", (rank, MESH_POINTS, 3), -1.01, 1.01),
        model=stored.texts("model", 1)[0],
        identity=stored.numbers("identity", (None,), -1e6, 1e6),
        vertices=vertices,
        faces=stored.numbers("faces", (None, 3), 0, len(vertices) - 1, "iu"),
    )


def _shots(stored: "StoredArrays", frames: int) -> Shots:
    cuts = stored.numbers("cuts", (None,), 1, frames - 1, "iu")
    if (np.diff(cuts) <= 0).any():
        stored.refuse("must list increasing frame numbers in the array 'cuts'")
    return Shots(cuts.tolist(), stored.texts("reasons", frames))


class StoredArrays:
    """The arrays of an .npz file that `command` wrote, each checked when it is taken.

    All methods raise a UserError if the file does not contain what they return.

    Args:
        path: file on disk or in a zip archive.
        command: command that wrote the file.
    """

    def __init__(self, path: Path | zipfile.Path, command: str) -> None:
        if not path.exists():
            raise UserError(f"{path} does not exist. Run `{command}`, which writes it.")
        self.path, self.command, self.arrays = path, command, load_arrays(path)

    def refuse(self, what: str) -> NoReturn:
        """Raise a UserError that says what the file must contain."""
        raise UserError(f"{self.path} {what}. Run `{self.command}` again.")

    def _array(self, name: str, shape: tuple[int | None, ...], kinds: str) -> np.ndarray:
        array = self.arrays.get(name)
        if array is None:
            self.refuse(f"has no array '{name}'")
        fits = len(array.shape) == len(shape) and all(
            length in (None, size) for length, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in kinds:
            kind = {
                "f": "real numbers",
                "iu": "whole numbers",
                "U": "text",
                "b": "booleans",
            }[kinds]
            expected = ", ".join("any" if length is None else str(length) for length in shape)
            self.refuse(
                f"must have {kind} of shape [{expected}] in the array '{name}', but has "
                f"{array.dtype} {list(array.shape)}"
            )
        return array

    def numbers(
        self,
        name: str,
        shape: tuple[int | None, ...],
        low: float = -MAX_DISTANCE,
        high: float = MAX_DISTANCE,
        kinds: str = "f",
    ) -> np.ndarray:
        """Return numbers of `shape`, where None allows any length, from `low` to `high`."""
        array = self._array(name, shape, kinds)
        if not ((array >= low) & (array <= high)).all():
            self.refuse(
                f"has values in the array '{name}' that are NaN or outside of {low:g} to {high:g}"
            )
        return array.astype(float if kinds == "f" else np.int64)

    def booleans(self, name: str) -> np.ndarray:
        """Return booleans [N]."""
        return self._array(name, (None,), "b")

    def texts(self, name: str, count: int) -> list[str]:
        """Return `count` texts."""
        return self._array(name, (count,), "U").tolist()


def read_track_params(path: Path | zipfile.Path) -> TrackParams:
    """Read a track_params.pt, without running any code that it may contain.

    Large arrays of a file on disk are memory-mapped: the published tracker stores 34,650 vertices
    for every frame, of which only the mean is used.

    Raises:
        UserError: the file is missing, unsafe to unpickle, or lacks a field, or a field has another
            type or shape than documented or holds values that are not finite. The message lists
            all faults.
    """
    fields = _load_torch(path)
    faults: list[str] = []
    euler = _numbers(fields, "euler", (None, 3), 1e3, faults)
    frames = len(euler)
    trans = _numbers(fields, "trans", (frames, 3), MAX_DISTANCE, faults)
    focal = _numbers(fields, "focal", (1,), 1e6, faults)
    expression = _numbers(fields, "exp", (frames, None), 1e6, faults)
    vertices = _mean_vertices(fields, frames, faults)
    valid = _valid(fields, frames, faults)
    faces = _faces(fields, len(vertices) if vertices is not None else 0, faults)
    if focal.size and not focal[0] > 0:
        faults.append(f"focal is {focal[0]}, but it must be a positive number of pixels.")
    if faults:
        raise UserError("\n  ".join(f"{path}: {fault}" for fault in faults))
    return TrackParams(euler, trans, float(focal[0]), expression, valid, vertices, faces)


def read_expression_basis(path: Path | zipfile.Path) -> np.ndarray:
    """Read the expression basis float32 [E, 478, 3] of a track_params.pt file.

    Row e is the displacement of the points of the face mesh in dm for coefficient e of 1.

    Raises:
        UserError: the file is missing or damaged, or has no basis of this shape.
    """
    faults: list[str] = []
    basis = _numbers(_load_torch(path), "exp_basis", (None, None, 3), 1e6, faults)
    if faults:
        raise UserError(
            f"{path}: {faults[0]} Run `talker track`, which writes the basis of the expressions."
        )
    return basis


def _load_torch(path: Path | zipfile.Path) -> Mapping[str, Any]:
    if isinstance(path, Path) and not path.exists():
        raise UserError(f"{path} does not exist. Run `talker track`, which writes it.")
    check_regular(path)
    try:
        fields = _load_mapped(path) if isinstance(path, Path) else _load_bytes(path.read_bytes())
    except Exception as error:  # torch raises many kinds for damaged or malicious files
        raise UserError(
            f"{path} cannot be read by torch.load with weights_only ({_first_line(error)})."
        ) from error
    if not isinstance(fields, dict):
        raise UserError(
            f"{path} contains a value of type {type(fields).__name__}. It must contain a "
            "dictionary of tensors."
        )
    return fields


def _load_mapped(path: Path) -> Any:
    import torch

    if not zipfile.is_zipfile(path):  # PyTorch before 1.6
        return _load_bytes(path.read_bytes())
    _check_stored(zipfile.ZipFile(path))
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _load_bytes(content: bytes) -> Any:
    import torch

    if zipfile.is_zipfile(io.BytesIO(content)):
        _check_stored(zipfile.ZipFile(io.BytesIO(content)))
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_stored(archive: zipfile.ZipFile) -> None:
    """Refuse compressed members, which torch.save never writes and which may exhaust the memory."""
    with archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("its content is compressed, but torch.save never compresses a file")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _tensor(fields: Mapping[str, Any], name: str, faults: list[str]) -> "torch.Tensor | None":
    """Return a dense tensor on the CPU, or add a fault and return None."""
    import torch

    value = fields.get(name)
    if not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        actual = "missing." if value is None else f"of type {kind}, but it must be a tensor."
        faults.append(f"{name} is {actual}")
    elif value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        faults.append(
            f"{name} is {value.layout} on {value.device}, but it must be a dense tensor on the CPU."
        )
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        faults.append(
            f"{name} has the shape {list(value.shape)}, but the file stores fewer values than that."
        )
    else:
        return value.detach()
    return None


def _numbers(
    fields: Mapping[str, Any],
    name: str,
    shape: tuple[int | None, ...],
    largest: float,
    faults: list[str],
) -> np.ndarray:
    """Return a field as float32 of `shape`, where None allows any length.

    If the field is invalid, a fault is added to `faults` and an empty array is returned.
    """
    empty = np.empty([length or 0 for length in shape], np.float32)
    tensor = _tensor(fields, name, faults)
    if tensor is None:
        return empty
    actual = list(tensor.shape)
    if len(actual) != len(shape) or any(
        length not in (None, size) for length, size in zip(shape, actual, strict=True)
    ):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        faults.append(f"{name} has the shape {actual}, but it must be [{expected}].")
        return empty
    if not tensor.is_floating_point():
        faults.append(
            f"{name} has the type {tensor.dtype}, but it must have floating-point numbers."
        )
        return empty
    values = tensor.float().numpy().copy()
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > largest:
        rows = np.flatnonzero(~(np.abs(values.reshape(len(values), -1)) <= largest).all(1))
        faults.append(
            f"{name} has values that are NaN, infinite, or larger than {largest:g} in "
            f"{len(rows)} rows. The first is row {rows[0]}."
        )
    return values


def _mean_vertices(fields: Mapping[str, Any], frames: int, faults: list[str]) -> np.ndarray | None:
    """Return float32 [V, 3], the mean of `vertices` [1 or T, V, 3]; None if there are none."""
    import torch

    if "vertices" not in fields:
        return None
    vertices = fields["vertices"]
    repeated = (
        isinstance(vertices, torch.Tensor)
        and vertices.layout == torch.strided
        and vertices.ndim == 3
        and vertices.shape[0] == frames
        and vertices.stride(0) == 0
    )
    tensor = _tensor({"vertices": vertices[:1] if repeated else vertices}, "vertices", faults)
    if tensor is None:
        return None
    if tensor.ndim != 3 or tensor.shape[2] != 3 or tensor.shape[0] not in (1, frames):
        faults.append(
            f"`vertices` has the shape {list(tensor.shape)}, but it must be [1 or {frames}, V, 3]."
        )
    elif not tensor.is_floating_point():
        faults.append(
            f"`vertices` has the type {tensor.dtype}, but it must have floating-point numbers."
        )
    elif tensor.shape[1] < 4:
        faults.append(f"`vertices` has {tensor.shape[1]} points, which is too few for a head mesh.")
    else:
        mean = tensor.float().mean(0).numpy()
        if np.isfinite(mean).all() and np.abs(mean).max() <= MAX_DISTANCE:
            return mean
        faults.append(
            f"`vertices` has values that are NaN, infinite, or larger than {MAX_DISTANCE:g} dm."
        )
    return None


def _valid(fields: Mapping[str, Any], frames: int, faults: list[str]) -> np.ndarray:
    if "valid" not in fields:
        return np.ones(frames, bool)
    tensor = _tensor(fields, "valid", faults)
    if tensor is None:
        return np.ones(frames, bool)
    if str(tensor.dtype) != "torch.bool" or tuple(tensor.shape) != (frames,):
        faults.append(
            f"`valid` has the type {tensor.dtype} and the shape {list(tensor.shape)}, but it must "
            f"be torch.bool of shape [{frames}]."
        )
        return np.ones(frames, bool)
    return tensor.numpy().copy()


def _faces(fields: Mapping[str, Any], vertices: int, faults: list[str]) -> np.ndarray | None:
    if "faces" not in fields:
        return None
    tensor = _tensor(fields, "faces", faults)
    if tensor is None:
        return None
    if (
        str(tensor.dtype) not in ("torch.int64", "torch.int32")
        or tensor.ndim != 2
        or tensor.shape[1] != 3
    ):
        faults.append(
            f"`faces` has the type {tensor.dtype} and the shape {list(tensor.shape)}, but it must "
            "be torch.int64 of shape [F, 3]."
        )
        return None
    faces = tensor.long().numpy().copy()
    if faces.size and not (faces.min() >= 0 and faces.max() < vertices):
        faults.append(
            f"`faces` refers to the vertices {faces.min()} to {faces.max()}, but there are "
            f"{vertices} vertices."
        )
    return faces


def write_track_params(path: Path, arrays: Mapping[str, np.ndarray], model: str) -> None:
    """Write a track_params.pt.

    Args:
        path: the file.
        arrays: `euler` and `trans` [T, 3], `focal` [1], `exp` [T, E], `vertices` [1 or T, V, 3],
            `valid` bool [T], `faces` int [F, 3], and any other arrays that describe the head;
            numbers other than `valid` and `faces` are stored as float32.
        model: name of the head model.
    """
    import torch

    exact = {"valid", "faces"}
    fields: dict[str, Any] = {
        name: torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if name not in exact
    }
    fields |= {
        "frame_ids": torch.arange(len(arrays["euler"])),
        "valid": torch.from_numpy(arrays["valid"].astype(np.bool_)),
        "faces": torch.from_numpy(arrays["faces"].astype(np.int64)),
        "model": model,
        "units": "dm",
    }
    torch.save(fields, path)


def read_track_report(path: Path | zipfile.Path) -> TrackReport:
    """Read a track_report.json.

    Raises:
        UserError: the file is missing or damaged, or lacks a fact.
    """
    report = load_json(path)
    try:
        motion, angles = report["motion_px"]["final"], report["degrees"]
        residuals = [shot["residual_px"] for shot in report["segments"]]
        facts = TrackReport(
            frames=int(report["frames"]),
            tracked=int(report["valid"]),
            focal=float(report["focal"]["px"]),
            focal_at_bound=report["focal"]["at_bound"],
            face_width=float(report["face_width_px"]),
            residual_percent=float(report["residual"]["percent_of_face"]),
            c1=None if motion["c1"] is None else float(motion["c1"]),
            c5=None if motion["c5"] is None else float(motion["c5"]),
            yaw_range=float(angles["yaw_high"] - angles["yaw_low"]),
            shots=len(residuals),
            shot_residuals=[float(value) for value in residuals if value is not None],
            reasons=[str(row["reason"]) for row in report["rejected"]],
            cut_by_border=report.get("cut_by_border"),
        )
        if not (facts.face_width > 0 and facts.shot_residuals and min(facts.shot_residuals) > 0):
            raise ValueError("the face width and the residuals of the shots must be positive")
        if not 0 <= facts.tracked <= facts.frames <= np.iinfo(np.int32).max:
            raise ValueError(f"{facts.tracked} of {facts.frames} frames cannot be tracked")
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path} is not a report of `talker track` ({error!r}). Run `talker track` again."
        ) from error
    return facts


def read_transforms(path: Path | zipfile.Path, frames: int) -> Transforms:
    """Read a transforms file of a clip of `frames` frames, in the order of the frames.

    Raises:
        UserError: the file is missing or damaged, lacks a key, or holds a frame number outside of
            the clip or a matrix that is not finite.
    """
    content = load_json(path)
    try:
        focal, cx, cy = (_number(content[key], key) for key in ("focal_len", "cx", "cy"))
        listed = content["frames"]
        if not isinstance(listed, list):
            raise TypeError(
                f"the type of `frames` is {type(listed).__name__}, but it must be a list"
            )
        ids = [_frame_number(frame["img_id"], "img_id", frames) for frame in listed]
        audio_ids = [_frame_number(frame["aud_id"], "aud_id", None) for frame in listed]
        matrices = np.array([frame["transform_matrix"] for frame in listed], float)
        matrices = matrices.reshape(len(ids), 4, 4)
        if not np.isfinite(matrices).all():
            raise ValueError("transform_matrix has values that are not finite")
    except KeyError as error:
        raise UserError(
            f"{path} has no {error}, which a transforms file must have. Run `talker track` again."
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is not a valid transforms file ({error}). Run `talker track` again."
        ) from error
    order = np.argsort(ids, kind="stable")
    numbers = np.array(ids, np.int64)[order], np.array(audio_ids, np.int64)[order]
    return Transforms(focal, (cx, cy), *numbers, matrices[order])


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ValueError(f"{key} is {str(value)[:40]}, but it must be a number")
    return float(value)


def _frame_number(value: Any, key: str, frames: int | None) -> int:
    if type(value) is not int or not 0 <= value < (2**31 if frames is None else frames):
        last = "" if frames is None else f" to {frames - 1}"
        raise ValueError(f"{key} is {str(value)[:40]}, but it must be a frame number from 0{last}")
    return value


def write_transforms(
    path: Path,
    matrices: np.ndarray,
    focal: float,
    size: tuple[int, int],
    ids: Iterable[int],
) -> None:
    """Write a transforms file of the frames `ids`.

    Args:
        path: the file.
        matrices: [T, 4, 4] of all frames, as `talker.head.camera.transform_matrices` returns them.
        focal: focal length in pixels.
        size: height and width of the image in pixels.
        ids: numbers of the frames to list.
    """
    height, width = size
    content = {
        "focal_len": focal,
        "cx": width / 2,
        "cy": height / 2,
        "w": width,
        "h": height,
        "fl_x": focal,
        "fl_y": focal,
        "frames": [
            {"img_id": i, "aud_id": i, "transform_matrix": matrices[i].tolist()} for i in ids
        ],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_verified(path: Path, sha256: str) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: the file cannot be read, or its checksum differs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise UserError(
            f"{path} has the SHA-256 checksum {actual}, but the configuration gives "
            f"'{sha256}'. Download the file again, or give the checksum of the file that "
            "you want to use."
        )
    return content


def load_torchscript(path: Path, sha256: str) -> "ScriptModule":
    """Load a TorchScript module onto the CPU.

    Raises:
        UserError: the file is missing, has another checksum, or is not a TorchScript module.
    """
    import torch

    content = io.BytesIO(read_verified(path, sha256))
    try:
        return torch.jit.load(content, map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a TorchScript module ({error}). Write it with torch.jit.trace or "
            "torch.jit.script."
        ) from error
