"""Names of the dataset folder are spelled in talker.data.layout only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from talker.data import layout

ROOT = Path(__file__).parents[1]
FILES = {
    value
    for name, value in vars(layout).items()
    if name.isupper() and isinstance(value, str) and "." in value
} | {"aud_hama.npy", "aud_hama.npz"}
FOLDERS = {kind.folder for kind in layout.IMAGES} - {"parsing"}  # parsing is also a stage
PARTS = {"parsing", layout.NOVEL}


def spelled(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string that names a file or folder of a dataset.

    Sentences, such as docstrings and messages, may name them; `path / "parsing"` may not.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if " " not in text and (text in FILES or text.split("/")[0] in FOLDERS):
                yield node.lineno, text
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            right = node.right
            if isinstance(right, ast.Constant) and right.value in PARTS:
                yield right.lineno, str(right.value)


def test_the_search_finds_names():
    found = [text for _, text in spelled('a / "clip.json"\nb = "ori_imgs/0.jpg"\nc / "parsing"')]
    assert sorted(found) == ["clip.json", "ori_imgs/0.jpg", "parsing"]
    assert not list(spelled('raise ValueError("clip.json is missing")\nstage = "parsing"'))


@pytest.mark.parametrize("path", sorted(ROOT.glob("talker/**/*.py")), ids=lambda p: p.name)
def test_names_are_spelled_in_one_place(path: Path):
    if path == ROOT / "talker" / "data" / "layout.py":
        return
    assert not list(spelled(path.read_text(encoding="utf-8")))
