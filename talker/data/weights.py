"""Optional files that talker does not ship: what each is for, its license, and where to get it.

The table `WEIGHTS` is the only place that states these facts. The messages of backends, encoders
and metrics and the command `talker weights` read it. Checksums were published by others together
with the files; where none is known, only the size or the beginning of a file can be verified.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from talker.core.checksum import checksum
from talker.errors import UserError

METRIC_NETWORKS = ("lpips", "stlpips", "inception", "identity", "syncnet")
"""Entries of `WEIGHTS` that are also options of `talker evaluate`, each of which names a file."""


@dataclass(frozen=True)
class Download:
    """A file that can be downloaded without a registration."""

    name: str
    """Name under which the file is saved."""
    url: str
    """Address of the published file."""
    size: int | None = None
    """Size in bytes of the saved file, if known."""
    checksum: str | None = None
    """Checksum of the saved file, if known: `sha256:HEX`, `sha1:HEX`, or `git:HEX` for the hash by
    which git identifies the content."""
    unpack: str = ""
    """`bz2` or `zip` if the published file is compressed."""
    begins: bytes = b""
    """First bytes of the saved file, by which a file without a known checksum is recognized."""


@dataclass(frozen=True)
class Weights:
    """An optional model, which consists of one file or of several in a folder."""

    name: str
    """Name of the published file or folder."""
    purpose: str
    """What talker uses it for."""
    use: str
    """Options that select it, as in `config/config.yaml`."""
    source: str
    """Web page or address of the publisher."""
    license: str
    """Terms of use, including those of the training data."""
    files: tuple[Download, ...] = ()
    """Files that `talker weights fetch` downloads; none if they have to be obtained by hand."""
    restricted: bool = False
    """Whether the terms exclude some uses, so that they have to be accepted before a download."""
    manual: str = ""
    """How to obtain the files if they cannot be downloaded."""
    key: str = ""
    """Name in `WEIGHTS`; filled in there."""

    @property
    def size(self) -> int | None:
        """Size of all files in bytes, if known."""
        sizes = [file.size for file in self.files]
        return None if not sizes or None in sizes else sum(size or 0 for size in sizes)

    @property
    def sha256(self) -> str | None:
        """SHA-256 checksum of a model that consists of one file, if known."""
        checksum = self.files[0].checksum if len(self.files) == 1 else None
        return checksum.removeprefix("sha256:") if checksum and "sha256" in checksum else None

    def hint(self) -> str:
        """Return a clause that says how to obtain the files, in the imperative."""
        if self.files:
            return f"run `talker weights fetch {self.key}`, or get {self.name} from {self.source}"
        return self.manual or f"get {self.name} from {self.source}"


GOOGLE = "https://storage.googleapis.com/mediapipe-models"
NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
NVIDIA_LICENSE = "NVIDIA Source Code License for StyleGAN2-ADA: non-commercial research"
RESEARCH = "for non-commercial research only"


def _hub(repository: str, revision: str, *files: tuple[str, int, str]) -> tuple[Download, ...]:
    """Return files (name, size, SHA-256) of a repository of the Hugging Face hub."""
    address = f"https://huggingface.co/{repository}/resolve/{revision}"
    return tuple(
        Download(name, f"{address}/{name}", size, f"sha256:{digest}")
        for name, size, digest in files
    )


_MODELS = {
    "fan": Weights(
        name="2DFAN4-11f355bf06.pth.tar",
        purpose="landmarks by FAN of face-alignment; second detector of `evaluate`",
        use="landmarks: {backend: fan}",
        source="https://www.adrianbulat.com/face-alignment",
        license="the code has the BSD-3-Clause license; the weights were trained on 300W-LP, which "
        f"is {RESEARCH}",
        restricted=True,
        files=(
            Download(
                name="2DFAN4-11f355bf06.pth.tar",
                url="https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar",
                checksum="sha256:11f355bf0693120222f5955ce3f9dc8fb5763ebb30a47d7906e509490d32e4aa",
            ),
        ),
    ),
    "dlib": Weights(
        name="shape_predictor_68_face_landmarks.dat",
        purpose="landmarks by dlib",
        use="landmarks: {backend: dlib}",
        source="http://dlib.net/files, or the package face-recognition-models on PyPI",
        license="the code has the BSL-1.0 license; the weights were trained on iBUG 300-W, whose "
        "license excludes commercial use",
        restricted=True,
        files=(
            Download(
                name="shape_predictor_68_face_landmarks.dat",
                url="https://dlib.net/files/shape_predictor_68_face_landmarks.dat.bz2",
                size=99_693_937,
                checksum="sha256:fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
                unpack="bz2",
            ),
        ),
    ),
    "bisenet": Weights(
        name="79999_iter.pth",
        purpose="parsing by BiSeNet",
        use="parsing: {backend: bisenet}",
        source="https://github.com/zllrunning/face-parsing.PyTorch (section Demo)",
        license="the code has the MIT license; the weights were trained on CelebAMask-HQ, which is "
        f"{RESEARCH}",
        restricted=True,
        files=(
            Download(
                name="79999_iter.pth",
                url="https://huggingface.co/ManyOtherFunctions/face-parse-bisent/resolve/"
                "0073b233a5a3c4b1377d4dbf49245017938a72b5/79999_iter.pth",
                size=53_289_463,
                checksum="sha256:468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
            ),
        ),
    ),
    "multiclass": Weights(
        name="selfie_multiclass_256x256.tflite",
        purpose="parsing by MediaPipe's multiclass selfie segmenter",
        use="parsing: {backend: multiclass}",
        source="https://ai.google.dev/edge/mediapipe/solutions/vision/image_segmenter",
        license="Apache-2.0",
        files=(
            Download(
                name="selfie_multiclass_256x256.tflite",
                url=f"{GOOGLE}/image_segmenter/selfie_multiclass_256x256/float32/1/"
                "selfie_multiclass_256x256.tflite",
                size=16_371_837,
                checksum="sha256:c6748b1253a99067ef71f7e26ca71096cd449baefa8f101900ea23016507e0e0",
            ),
        ),
    ),
    "blendshapes": Weights(
        name="face_landmarker.task",
        purpose="blinks by the blendshapes of MediaPipe's face landmarker",
        use="blink: {backend: blendshapes}",
        source="https://ai.google.dev/edge/mediapipe/solutions/vision/face_landmarker",
        license="Apache-2.0",
        files=(
            Download(
                name="face_landmarker.task",
                url=f"{GOOGLE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
                size=3_758_596,
                checksum="sha256:64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
            ),
        ),
    ),
    "bfm2009": Weights(
        name="01_MorphableModel.mat",
        purpose="head model Basel Face Model 2009",
        use="fit: {model: bfm2009, model_files: FOLDER}",
        source="https://faces.dmi.unibas.ch/bfm",
        license="agreement of the University of Basel, for non-commercial research only",
        restricted=True,
        manual="get 01_MorphableModel.mat from https://faces.dmi.unibas.ch/bfm (fill in the "
        "registration form; the link is sent by e-mail)",
    ),
    "ict": Weights(
        name="ICT-FaceKit",
        purpose="head model ICT-FaceKit",
        use="fit: {model: ict, model_files: FOLDER}",
        source="https://github.com/ICT-VGL/ICT-FaceKit",
        license="MIT",
        manual="run `git clone https://github.com/ICT-VGL/ICT-FaceKit`",
    ),
    "deepspeech": Weights(
        name="deepspeech-0_1_0-b90017e8.pb",
        purpose="speech encoder DeepSpeech",
        use="encoder: deepspeech",
        source="https://github.com/osmr/deepspeech_features",
        license="MPL-2.0",
        files=(
            Download(
                name="deepspeech-0_1_0-b90017e8.pb",
                url="https://github.com/osmr/deepspeech_features/releases/download/v0.0.1/"
                "deepspeech-0_1_0-b90017e8.pb.zip",
                checksum="sha1:b90017e816572ddce84f5843f1fa21e6a377975e",
                unpack="zip",
            ),
        ),
    ),
    "hubert": Weights(
        name="hubert-base-ls960",
        purpose="speech encoder HuBERT",
        use="encoder: hubert",
        source="https://huggingface.co/facebook/hubert-base-ls960",
        license="Apache-2.0",
        files=_hub(
            "facebook/hubert-base-ls960",
            "dba3bb02fda4248b6e082697eee756de8fe8aa8a",
            (
                "config.json",
                1_385,
                "56be398848bbd9cbc720172b0d45b2f01cac7652f2968f0f31f5faf9f2986acc",
            ),
            (
                "preprocessor_config.json",
                213,
                "4a93853b74278b7c769d07f5a861e5d12ceb5db2bced5620d335f87238cb9e86",
            ),
            (
                "pytorch_model.bin",
                377_569_754,
                "062249fffb353eab67547a2fbc129f7c31a2f459faf641b19e8fb007cc5c48ad",
            ),
        ),
    ),
    "wav2vec2": Weights(
        name="wav2vec2-base-960h",
        purpose="speech encoder wav2vec 2.0",
        use="encoder: wav2vec2",
        source="https://huggingface.co/facebook/wav2vec2-base-960h",
        license="Apache-2.0",
        files=_hub(
            "facebook/wav2vec2-base-960h",
            "22aad52d435eb6dbaf354bdad9b0da84ce7d6156",
            (
                "config.json",
                1_596,
                "d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3",
            ),
            (
                "preprocessor_config.json",
                159,
                "b225d617c025463b9e157e06afea8b90dc7078fc70b013c533328423e0486b4a",
            ),
            (
                "model.safetensors",
                377_607_901,
                "8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a",
            ),
        ),
    ),
    "whisper": Weights(
        name="whisper-tiny",
        purpose="speech encoder Whisper",
        use="encoder: whisper",
        source="https://huggingface.co/openai/whisper-tiny",
        license="Apache-2.0",
        files=_hub(
            "openai/whisper-tiny",
            "169d4a4341b33bc18d8881c4b69c2e104e1cc0af",
            (
                "config.json",
                1_983,
                "ffdccec4f3211f4c63310f2b7098f309fe70f3952cedc5e4d11e43f5b2379b98",
            ),
            (
                "preprocessor_config.json",
                184_990,
                "9b5cd03a36fbb8a627c64d98a5b5b126ead95a77720723944487311f0110b666",
            ),
            (
                "model.safetensors",
                151_061_672,
                "7ebd0e69e78190ffe1438491fa05cc1f5c1aa3a4c4db3bc1723adbb551ea2395",
            ),
        ),
    ),
    "syncnet": Weights(
        name="syncnet_v2.model",
        purpose="metrics Sync-C and Sync-D",
        use="evaluate: {syncnet: published}",
        source="https://www.robots.ox.ac.uk/~vgg/software/lipsync",
        license="published by the authors without a license; their code has the MIT license",
        files=(
            Download(
                name="syncnet_v2.model",
                url="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
                size=54_573_114,
                checksum="sha256:961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
            ),
        ),
    ),
    "lpips": Weights(
        name="vgg16.pt",
        purpose="metric LPIPS (VGG16 with the linear weights of LPIPS, as TorchScript)",
        use="evaluate: {lpips: published}",
        source="https://github.com/NVlabs/stylegan2-ada-pytorch",
        license=NVIDIA_LICENSE,
        restricted=True,
        files=(
            Download(
                name="vgg16.pt",
                url=f"{NVIDIA}/vgg16.pt",
                checksum="sha256:b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3",
            ),
        ),
    ),
    "stlpips": Weights(
        name="alex_shift_tolerant.pth",
        purpose="metric ST-LPIPS (AlexNet with blurred downsampling)",
        use="evaluate: {stlpips: published}",
        source="https://pypi.org/project/stlpips-pytorch",
        license="BSD-2-Clause; the weights were trained on ImageNet, which is for non-commercial "
        "research only",
        restricted=True,
        files=(
            Download(
                name="alex_shift_tolerant.pth",
                url="https://files.pythonhosted.org/packages/py3/s/stlpips-pytorch/"
                "stlpips_pytorch-0.0.2-py3-none-any.whl",
                size=9_899_296,
                checksum="sha256:b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
                unpack="zip",
            ),
        ),
    ),
    "inception": Weights(
        name="inception-2015-12-05.pt",
        purpose="metric FID (the original Inception network, as TorchScript)",
        use="evaluate: {inception: published}",
        source="https://github.com/NVlabs/stylegan2-ada-pytorch",
        license=NVIDIA_LICENSE,
        restricted=True,
        files=(
            Download(
                name="inception-2015-12-05.pt",
                url=f"{NVIDIA}/inception-2015-12-05.pt",
                size=95_607_719,
                checksum="sha256:f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
            ),
        ),
    ),
    "identity": Weights(
        name="a face recognition network as TorchScript",
        purpose="metric CSIM",
        use="evaluate: {identity: FILE, identity_sha256: ...}",
        source="https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch",
        license="the license of the weights that you choose; the weights of InsightFace are "
        f"{RESEARCH}",
        restricted=True,
        manual="trace an ArcFace network of "
        "https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch with "
        "torch.jit.trace (docs/speech.md describes its inputs and outputs)",
    ),
    "obama": Weights(
        name="obama.mp4",
        purpose="example video that was published with AD-NeRF (320 s, 450x450)",
        use="example: obama",
        source="https://github.com/YudongGuo/AD-NeRF",
        license="not stated; the video was cut from a public speech, and published with AD-NeRF",
        files=(
            Download(
                name="obama.mp4",
                url="https://github.com/YudongGuo/AD-NeRF/raw/master/dataset/vids/Obama.mp4",
                checksum="git:f4a3388f412b5c050666f477f54cc7ea7f1fbb4a",
            ),
        ),
    ),
}

WEIGHTS = {key: Weights(**{**vars(model), "key": key}) for key, model in _MODELS.items()}
"""The optional models by name. A backend and its weights have the same name."""
EXAMPLES = ("obama",)
"""Entries of `WEIGHTS` that are example videos, which are saved as `data/NAME/NAME.mp4`."""


def weights_folder() -> Path:
    """Return the folder where fetched files are kept.

    It is the environment variable TALKER_WEIGHTS, or by default the folder `talker/weights` in the
    user's cache folder.
    """
    if folder := os.environ.get("TALKER_WEIGHTS"):
        return Path(folder)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "talker" / "weights"


def location(weights: Weights) -> Path:
    """Return the default path of a model: a file, or a folder if it consists of several files."""
    if weights.key in EXAMPLES:
        return Path("data", weights.key, weights.name)
    return weights_folder() / weights.name


def paths_of(weights: Weights, at: Path | None = None) -> Iterator[tuple[Download, Path]]:
    """Yield the files of a model with their paths, if the model is at `at` or its `location`."""
    at = at or location(weights)
    for file in weights.files:
        yield file, at if len(weights.files) == 1 else at / file.name


def fault_of(file: Download, path: Path) -> str | None:
    """Return why the content of `path` is not the published file, or None.

    The checksum is compared if it is known, otherwise the size and the first bytes.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        truncated = " (the download was probably interrupted)" if size < file.size else ""
        return f"has {size:,} bytes instead of {file.size:,}{truncated}"
    if file.checksum:
        kind, _, expected = file.checksum.partition(":")
        actual = checksum(path, kind)
        return None if actual == expected else f"has the {kind} checksum {actual}, not {expected}"
    with path.open("rb") as content:
        begins = content.read(len(file.begins))
    return None if begins == file.begins else "does not begin like the published file"


def published(name: str) -> tuple[Path, str]:
    """Return the path and the SHA-256 checksum of a fetched model that consists of one file.

    Raises:
        UserError: it was not fetched.
    """
    weights = WEIGHTS[name]
    path = location(weights)
    if not path.is_file():
        raise UserError(f"{path} does not exist. To obtain it, {weights.hint()}.")
    return path, weights.sha256 or ""
