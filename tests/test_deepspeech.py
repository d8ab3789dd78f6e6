"""DeepSpeech's network, from a graph of the published form with random values."""

from pathlib import Path

import numpy as np
import pytest

from talker.data.weights import WEIGHTS
from talker.encoders import Choice, load_encoder
from talker.encoders.deepspeech_network import cepstra, inputs_of, predict
from talker.errors import UserError
from talker.media.audio import write_wav

UNITS = 5
"""Units of the recurrent cells; 2048 in the published network."""
SHAPES = {
    "h1": (494, 8),
    "h2": (8, 7),
    "h3": (7, 6),
    "h5": (2 * UNITS, 9),
    "h6": (9, 29),
    **{
        f"bidirectional_rnn/{cell}/basic_lstm_cell/kernel": (6 + UNITS, 4 * UNITS)
        for cell in ("fw", "bw")
    },
}

REFERENCE = [17.878790799, 26.092134843, 17.723647696, -8.840502453, -0.416994796]
TOTAL = -503.580460656


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes | int) -> bytes:
    """Serialize a field of a protocol buffer."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def constant(name: str, array: np.ndarray) -> bytes:
    """Serialize a node of the kind Const."""
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    tensor = field(1, 1) + field(2, shape) + field(4, array.astype("<f4").tobytes())
    kind = field(5, field(1, b"dtype") + field(2, field(6, 1)))
    value = field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, field(1, name.encode()) + field(2, b"Const") + kind + value)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in SHAPES.items()}
    biases = {
        name.replace("kernel", "bias").replace("h", "b", name.startswith("h")): rng.normal(
            size=array.shape[1]
        )
        for name, array in arrays.items()
    }
    return {name: array.astype(np.float32) for name, array in (arrays | biases).items()}


@pytest.fixture(scope="module")
def graph(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with a placeholder, an identity and the weights, as the converter leaves it."""
    path = tmp_path_factory.mktemp("deepspeech") / "graph.pb"
    placeholder = field(1, field(1, b"input_node") + field(2, b"Placeholder"))
    identity = field(1, field(1, b"h1/read") + field(2, b"Identity") + field(3, b"h1"))
    nodes = [constant(name, array) for name, array in weights.items()]
    path.write_bytes(placeholder + identity + b"".join(nodes) + field(4, field(1, 24)))
    return path


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def recur(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Evaluate TensorFlow's BasicLSTMCell with a forget bias of 1, step by step."""
    state, hidden, rows = np.zeros(UNITS), np.zeros(UNITS), []
    for row in x:
        i, j, f, o = np.split(np.concatenate([row, hidden]) @ kernel + bias, 4)
        state = state * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
        hidden = np.tanh(state) * sigmoid(o)
        rows.append(hidden)
    return np.array(rows)


def expected_scores(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for layer in "123":
        x = (x @ weights[f"h{layer}"] + weights[f"b{layer}"]).clip(0, 20)
    cells = [
        [weights[f"bidirectional_rnn/{cell}/basic_lstm_cell/{part}"] for part in ("kernel", "bias")]
        for cell in ("fw", "bw")
    ]
    x = np.concatenate([recur(x, *cells[0]), recur(x[::-1], *cells[1])[::-1]], axis=1)
    x = (x @ weights["h5"] + weights["b5"]).clip(0, 20)
    return x @ weights["h6"] + weights["b6"]


def sound(seconds: float) -> np.ndarray:
    t = np.arange(round(16_000 * seconds)) / 16_000
    return (8000 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.int16)


def test_the_network_predicts_what_tensorflow_would(weights: dict[str, np.ndarray], graph: Path):
    samples = sound(0.8)
    found = predict(graph, samples)
    assert found.shape == (40, 29) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected_scores(weights, inputs_of(samples)), atol=1e-4)


def test_cepstra_are_those_of_python_speech_features():
    """Values of `mfcc(sound, 16000, numcep=26)` of its version 0.6."""
    found = cepstra(sound(0.105))
    assert found.shape == (9, 26)
    np.testing.assert_allclose(found[4, [0, 1, 2, 12, 25]], REFERENCE, rtol=1e-6)
    np.testing.assert_allclose(found.sum(), TOTAL, rtol=1e-6)
    assert np.isfinite(cepstra(np.zeros(100, np.int16))).all()


def test_inputs_have_context_and_are_normalized():
    inputs = inputs_of(sound(0.4))
    assert inputs.shape == (20, 494)
    assert inputs.mean() == pytest.approx(0, abs=1e-4) and inputs.std() == pytest.approx(
        1, abs=1e-4
    )
    np.testing.assert_array_equal(inputs[3, 26:], inputs[4, :-26])


def test_scores_are_computed_where_no_file_has_them(graph: Path, tmp_path: Path):
    write_wav(tmp_path / "aud.wav", sound(0.8))
    encoder = load_encoder(Choice("deepspeech", str(graph)), tmp_path / "aud.wav")
    found = encoder.extract(np.zeros(12_800, np.float32), 0)
    np.testing.assert_array_equal(found, predict(graph, sound(0.8)))
    np.save(tmp_path / "aud_ds.npy", np.ones((40, 29), np.float32))
    encoder = load_encoder(Choice("deepspeech", str(graph)), tmp_path / "aud.wav")
    assert (encoder.extract(np.zeros(12_800, np.float32), 0) == 1).all()


@pytest.mark.parametrize("damage", ["cut", "other", "noise", "empty"])
def test_other_files_are_refused(graph: Path, tmp_path: Path, damage: str):
    path = tmp_path / "mine.pb"
    content = graph.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "other": constant("h1", np.zeros((2, 2))),
            "noise": np.random.default_rng(0).bytes(500),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(UserError) as caught:
        predict(path, sound(0.4))
    assert str(caught.value).startswith(f"{path} does not contain deepspeech-0_1_0-b90017e8.pb (")
    assert WEIGHTS["deepspeech"].hint() in str(caught.value)
    if damage == "other":
        assert "the file lacks 13 weights, such as b1" in str(caught.value)
