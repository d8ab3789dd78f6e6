"""Options of training, with their ranges and defaults; presets and config.yaml override them."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from talker.avatar.blendshapes import COMPONENTS
from talker.avatar.density import DensityConfig
from talker.avatar.gaussians import MAX_SH_DEGREE, NEIGHBORS
from talker.avatar.losses import LossWeights
from talker.clip import MAX_SIZE
from talker.core.config import (
    DEFAULT_ENCODER,
    AtLeast0,
    AtLeast1,
    Fraction,
    NonNegative,
    Positive,
    validated,
)

MIN_SIZE = 16
"""Smallest size of the training images in pixels; the crop around the head is a multiple of it."""
ImageSize = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]


@validated
class LearningRates:
    """Learning rates of the Adam optimizer for each group of parameters."""

    means: NonNegative = 4e-4
    """Learning rate of the centers of the Gaussians, in dm per step."""
    quats: NonNegative = 1e-3
    """Learning rate of the rotations of the Gaussians."""
    scales: NonNegative = 5e-3
    """Learning rate of the logarithms of the sizes of the Gaussians."""
    opacities: NonNegative = 0.05
    """Learning rate of the opacity logits of the Gaussians. It does not decay."""
    sh: NonNegative = 2.5e-3
    """Learning rate of the color coefficients of the Gaussians. It does not decay. Coefficients of
    colors that depend on the viewing direction learn at a twentieth of this rate."""
    planes: NonNegative = 5e-3
    """Learning rate of the tri-planes."""
    network: NonNegative = 1e-3
    """Learning rate of the attention blocks and of the output layers of the deformation network."""
    decay: Positive = 0.05
    """Ratio of the final to the initial learning rate of a stage. The decay is exponential."""


@validated
class Config:
    """Options of `talker train`."""

    encoder: str = DEFAULT_ENCODER
    """Speech encoder whose features the avatar is trained on. The workflow sets it from the key
    `encoder` of its configuration."""
    image_size: ImageSize = 512
    """Longer side of the training images in pixels. Rendered frames have the same size."""
    device: str = "auto"
    """Device to train on: cpu, cuda, or auto, which selects cuda if a GPU is available."""
    seed: AtLeast0 = 6666
    """Seed of all random numbers. The same seed gives a bit-identical avatar, on a GPU only if
    cuda-core is installed."""

    gaussians: Annotated[int, Field(gt=NEIGHBORS)] = 20_000
    """Number of Gaussians at the start of training. Densification adds more."""
    sh_degree: Annotated[int, Field(ge=0, le=MAX_SH_DEGREE)] = 3
    """Degree of the spherical harmonics that make a color depend on the viewing direction."""
    plane_resolutions: tuple[Annotated[int, Field(ge=2)], ...] = (64, 128)
    """Side lengths of the tri-planes in cells. There is one tri-plane for each value."""
    plane_channels: AtLeast1 = 32
    """Number of channels of each tri-plane."""
    features: AtLeast1 = 64
    """Number of channels of the tokens, queries and attention layers."""
    heads: AtLeast1 = 2
    """Number of attention heads. The option `features` must be a multiple of this number."""
    layers: AtLeast1 = 1
    """Number of attention blocks."""
    hidden: AtLeast1 = 128
    """Width of the hidden layer that all output layers of the deformation network share."""

    canonical_steps: AtLeast1 = 1_000
    """Number of steps of the canonical stage, which fits one head without facial motion."""
    canonical_batch: AtLeast1 = 8
    """Number of images in a batch of the canonical stage."""
    mouth_split: AtLeast1 = 4
    """Number of smaller Gaussians that replace each Gaussian around the lips before the deformation
    stage. Larger numbers make teeth and lips sharper. With 1, the Gaussians are not split."""
    eye_split: AtLeast1 = 1
    """Number of smaller Gaussians that replace each Gaussian around the eyes before the deformation
    stage. Larger numbers make the eyelids sharper. With 1, the Gaussians are not split."""
    blink_share: Fraction = 0.0
    """Fraction of the images in the deformation stage that are selected so that all degrees of eye
    closure occur equally often. The default of 0 uses all training frames equally often. In a short
    training run, blinks are then too rare, and the eyes do not close."""
    deformation_steps: AtLeast1 = 1_500
    """Number of steps of the deformation stage, which fits the facial motion. More steps make
    avatars of clips of less than a minute slightly sharper, but not more accurate
    (docs/notes/quality.md). Longer clips may need more."""
    deformation_batch: AtLeast1 = 16
    """Number of images in a batch of the deformation stage."""
    max_epochs: AtLeast1 = 200
    """Maximum number of times that the deformation stage uses each frame. On short clips, this ends
    the stage early."""
    pose_noise: NonNegative = 1.0
    """Standard deviation of the noise that is added to the pose token during training, relative to
    the standard deviation of the poses. Without this noise, the network recognizes training frames
    by their pose, and the mouth follows the head instead of the speech."""
    speech_noise: NonNegative = 0.1
    """Standard deviation of the noise that is added to the speech features during training. The
    features have unit variance."""
    mouth_amplitude: Fraction = 1.0
    """Degree to which the predicted expression is amplified, from 0 (not at all) to 1 (to the
    amplitude of the recording). This is needed because a regression model predicts less motion than
    the recording contains. 0 gives the smallest error; 1 reduces the PSNR around the mouth by 0.1
    to 0.4 dB (docs/quality.md)."""
    expression_share: Fraction = 0.5
    """Fraction of the training frames that are driven by the tracked expression instead of the one
    predicted from speech. In these frames, the mouth is fully determined by the expression, so the
    network does not learn to infer the shape of the mouth from the eye closure and the head
    pose."""

    speech_prior: str = ""
    """File written by `talker prior`. With it, the map from speech to expression is kept close to a
    map that is common to other speakers. Cross-validation on the training frames chooses the
    strength of this constraint, and whether it is used at all. This helps most on clips of less
    than 20 s. By default, the map is fitted to the clip alone."""

    rates: LearningRates = field(default_factory=LearningRates)
    weights: LossWeights = field(default_factory=LossWeights)
    density: DensityConfig = field(default_factory=DensityConfig)
    perceptual: str = ""
    """TorchScript file of a perceptual network such as LPIPS, for the loss term `perceptual`
    (talker/measure/networks.py describes its interface). By default, the loss does not have this
    term."""
    perceptual_sha256: str = ""
    """SHA-256 checksum of the file given with `perceptual`. Required if a file is given. Training
    stops if the file has a different checksum."""
    blendshapes: AtLeast0 = COMPONENTS
    """Number of blendshapes that replace most of the deformation network when the avatar is
    rendered, which is then faster. They are computed at the end of training, and only used if they
    lower the PSNR on training frames by at most 0.1 dB. With 0, the avatar is rendered with the
    network alone. If you change only this option and run `talker train` again, it does not repeat
    the training, but computes the blendshapes from the checkpoint."""
    point_cloud_steps: tuple[AtLeast1, ...] = ()
    """Steps after which the Gaussians are saved as `point_cloud_STEP.ply` next to the checkpoint.
    Steps are counted from the start of training and continuously across both stages. By default,
    the Gaussians are saved only at the end of training, as part of the avatar."""
    checkpoint_seconds: NonNegative = 30.0
    """Time between two checkpoints in seconds. A killed run loses at most this much training."""

    def __post_init__(self) -> None:
        if self.features % self.heads:
            raise ValueError(
                f"features ({self.features}) must be a multiple of heads ({self.heads})"
            )
