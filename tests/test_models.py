"""Load heads from files: valid files made from the package's head, and invalid ones."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from talker.backends import load_backend
from talker.errors import UserError
from talker.head.dense import fit_head, head_surface
from talker.head.embedding import embed
from talker.head.morphable import PARTS, MorphableHead

IDENTITIES, EXPRESSIONS = 6, 79


def load_head(model: str, files: Path | None = None) -> MorphableHead:
    """Load a head through its backend."""
    return load_backend("head", model).load(files)


@pytest.fixture(scope="module")
def ours() -> MorphableHead:
    return MorphableHead.load()


def solid(ours: MorphableHead) -> np.ndarray:
    """The triangles of everything but the lashes."""
    return ours.faces[ours.parts != PARTS.index("lashes")]


def misplaced(points: np.ndarray) -> np.ndarray:
    """Return a rotation and a shift, because another model may have its head elsewhere."""
    return points @ Rotation.from_euler("x", 6, degrees=True).as_matrix().T + [0.3, -0.8, 0.5]


@pytest.fixture(scope="module")
def basel(ours: MorphableHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a 01_MorphableModel.mat of the package's head."""
    folder = tmp_path_factory.mktemp("basel")
    turn = Rotation.from_euler("x", 6, degrees=True).as_matrix().T
    shapes = ours.identities[10 : 10 + IDENTITIES].astype(float) @ turn
    sizes = np.linalg.norm(shapes, axis=(1, 2))
    savemat(
        folder / "01_MorphableModel.mat",
        {
            "shapeMU": 1e5 * misplaced(ours.vertices).reshape(-1, 1),
            "shapePC": (shapes / sizes[:, None, None]).reshape(IDENTITIES, -1).T,
            "shapeEV": 1e5 * sizes[:, None],
            "tl": solid(ours)[:, ::-1] + 1.0,
        },
    )
    return folder


@pytest.fixture(scope="module")
def model(basel: Path) -> MorphableHead:
    return load_head("bfm2009", basel)


def test_landmarks_are_embedded_on_any_head(ours: MorphableHead):
    """The 478 points are where the detector locates them on the textured head."""
    vertices, faces = ours.vertices.astype(float), solid(ours)
    triangles, weights = embed(vertices, faces)
    assert triangles.shape == (478,) and triangles.min() >= 0 and triangles.max() < len(faces)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert weights.min() > -1e-3
    points = (vertices[faces[triangles]] * weights[..., None]).sum(axis=1)
    off = np.linalg.norm(points - ours.landmarks(vertices), axis=1)
    assert np.median(off) < 0.03 and np.percentile(off, 95) < 0.1


def test_what_is_no_face_is_refused():
    cube = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    faces = np.array([[1, 5, 7], [1, 7, 3]])
    with pytest.raises(UserError, match="No face was detected"):
        embed(cube, faces)


def test_basel_model_lies_where_our_head_does(model: MorphableHead, ours: MorphableHead):
    assert model.identities.shape == (IDENTITIES, len(ours.vertices), 3)
    assert np.abs(model.vertices - ours.vertices).max() < 0.1
    points = model.landmarks(model.vertices)
    off = np.linalg.norm(points - ours.landmarks(ours.vertices), axis=1)
    assert np.median(off) < 0.05
    np.testing.assert_allclose(
        np.linalg.norm(model.identities, axis=(1, 2)),
        np.linalg.norm(ours.identities[10 : 10 + IDENTITIES], axis=(1, 2)),
        rtol=1e-2,
    )
    corners = model.vertices[model.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals * corners.mean(axis=1)).sum() > 0


def test_expressions_are_carried_over(model: MorphableHead, ours: MorphableHead):
    assert model.expression_names == ours.expression_names
    jaw = ours.expression_names.index("jawOpen")
    skin = np.unique(ours.faces[ours.parts == PARTS.index("skin")])
    carried = model.expressions[jaw][skin]
    given = ours.expressions[jaw][skin]
    assert np.sqrt(((carried - given) ** 2).mean()) < 0.25 * np.sqrt((given**2).mean())


def test_basel_expressions_are_read_if_given(basel: Path, ours: MorphableHead, tmp_path: Path):
    (tmp_path / "01_MorphableModel.mat").symlink_to(basel / "01_MorphableModel.mat")
    kept = np.arange(0, len(ours.vertices), 2)
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3 * len(kept), EXPRESSIONS))
    sizes = np.linspace(2.0, 1.0, EXPRESSIONS)
    mean = np.zeros((len(kept), 3))
    mean[:, 1] = 4e3
    info = {"base_exp": basis, "sig_exp": sizes, "mu_exp": mean.ravel()}
    np.save(tmp_path / "exp_info.npy", np.array(info, dtype=object))
    np.save(tmp_path / "topology_info.npy", np.array({"sub_inds": kept}, dtype=object))
    found = load_head("bfm2009", tmp_path)
    assert found.expressions.shape == (EXPRESSIONS, len(ours.vertices), 3)
    assert not found.expressions[:, 1::2].any()
    expected = np.linalg.norm(basis, axis=0) * sizes * 1e-5
    np.testing.assert_allclose(np.linalg.norm(found.expressions, axis=(1, 2)), expected, rtol=1e-3)
    shift = found.vertices - load_head("bfm2009", basel).vertices
    raised = shift[::2].mean(axis=0) - shift[1::2].mean(axis=0)
    np.testing.assert_allclose(raised, [0, 0.04, 0], atol=0.01)


def test_converted_basel_model_is_read(basel: Path, ours: MorphableHead, tmp_path: Path):
    """3DMM_info.npy and topology_info.npy give the head that the .mat file gives."""
    arrays = loadmat(basel / "01_MorphableModel.mat")
    rng = np.random.default_rng(0)
    count = len(ours.vertices)
    shift = np.full(3 * count, 500.0)
    info = {
        "mu_shape": arrays["shapeMU"].ravel() - shift,
        "b_shape": arrays["shapePC"].T,
        "sig_shape": arrays["shapeEV"].ravel(),
        "mu_exp": shift,
        "b_exp": rng.normal(size=(EXPRESSIONS, 3 * count)),
        "sig_exp": np.ones(EXPRESSIONS),
    }
    np.save(tmp_path / "3DMM_info.npy", np.array(info, dtype=object))
    with pytest.raises(UserError, match=r"topology_info\.npy does not exist"):
        load_head("bfm2009", tmp_path)
    topology = {"tris": arrays["tl"].astype(int) - 1}
    np.save(tmp_path / "topology_info.npy", np.array(topology, dtype=object))
    found, expected = load_head("bfm2009", tmp_path), load_head("bfm2009", basel)
    np.testing.assert_allclose(found.vertices, expected.vertices, atol=1e-4)
    np.testing.assert_allclose(found.identities, expected.identities, atol=1e-4)
    assert found.expressions.shape == (EXPRESSIONS, count, 3)
    del info["sig_exp"]
    np.save(tmp_path / "3DMM_info.npy", np.array(info, dtype=object))
    with pytest.raises(UserError, match=r"3DMM_info\.npy must contain .*sig_exp"):
        load_head("bfm2009", tmp_path)


def test_ict_clone_is_read(ours: MorphableHead, tmp_path: Path):
    folder = tmp_path / "FaceXModel"
    folder.mkdir()
    jaw = ours.expressions[ours.expression_names.index("jawOpen")]
    shapes = {
        "generic_neutral_mesh": ours.vertices,
        "identity000": ours.vertices + ours.identities[20],
        "identity001": ours.vertices + ours.identities[21],
        "jawOpen": ours.vertices + jaw,
    }
    for name, vertices in shapes.items():
        rows = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in 10 * misplaced(vertices)]
        rows += ["f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in solid(ours)]
        (folder / f"{name}.obj").write_text("\n".join(["# a head", *rows]) + "\n")
    found = load_head("ict", tmp_path)
    assert found.identities.shape == (2, len(ours.vertices), 3)
    assert found.expressions.shape == (1, len(ours.vertices), 3)
    assert np.abs(found.vertices - ours.vertices).max() < 0.1
    assert np.abs(found.expressions[0] - jaw).max() < 0.05


def test_subject_is_fitted_with_another_model(model: MorphableHead):
    """Tracking works with every head model."""
    true = np.zeros(IDENTITIES)
    true[2] = 1.0
    vertices = model.vertices + np.tensordot(true, model.identities, 1)
    fitted, weights = fit_head(model, model.landmarks(vertices))
    assert weights.shape == (IDENTITIES,)
    surface, faces = head_surface(model, fitted)
    assert faces.max() == len(surface) - 1
    distance, _ = KDTree(surface).query(model.landmarks(vertices))
    assert np.median(distance) < 0.05


@pytest.mark.parametrize("name", ["bfm2009", "ict"])
def test_missing_files_are_named_with_their_source(name: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"head model .* from https://.* does not exist"):
        load_head(name, tmp_path)
    with pytest.raises(UserError, match=r"`model_files` is not set"):
        load_head(name)


def test_wrong_files_are_refused(tmp_path: Path):
    (tmp_path / "01_MorphableModel.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"01_MorphableModel\.mat is not the Basel Face Model"):
        load_head("bfm2009", tmp_path)
