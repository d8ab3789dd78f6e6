"""The avatar: canonical 3D Gaussians, deformed for each frame by speech, blink and pose tokens.

GaussianTalker (ACM MM 2024): a tri-plane gives each Gaussian a feature, attention over the frame's
condition tokens turns it into offsets of position, scale, rotation, opacity and colour. The five
deformation heads share their hidden layer, so that one product serves all Gaussians and heads.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from talker.avatar.attention import TokenAttention
from talker.avatar.ply import save_ply
from talker.avatar.rasterize import Splats, rasterize
from talker.avatar.speech_encoder import SpeechEncoder
from talker.avatar.speech_prior import EXPRESSIONS
from talker.avatar.spherical_harmonics import evaluate_sh
from talker.avatar.triplane import TriPlane
from talker.core.config import from_mapping, validated
from talker.errors import UserError

if TYPE_CHECKING:
    from talker.avatar.kernels.deform_triton import Weights

EYE_SCALE = 4.0
"""A blink is about 4 deviations of the eye, and the other conditions are standardised. Unscaled, a
draft avatar never learnt to blink (eyes of a held-out part: correlation 0.23, scaled 0.98)."""


@validated
class AvatarConfig:
    """The shape of the network; stored with the weights."""

    image_size: int
    """longer side of the images it was trained on, pixels"""
    speech_features: int
    """channels C of a speech window [16, C]"""
    encoder: str
    """the speech encoder that made the windows"""
    audio_net: bool
    """whether AudioNet corrects the linear map from speech to expression"""
    sh_degree: int
    plane_resolutions: tuple[int, ...]
    plane_channels: int
    features: int
    """width of tokens, queries and attention"""
    heads: int
    layers: int
    hidden: int
    """width of the deformation heads"""


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of G Gaussians, one set or one for each of B frames: [(B,) G, ...]."""

    means: Tensor
    """dm"""
    quats: Tensor
    """wxyz, not normalised"""
    scales: Tensor
    """log of dm"""
    opacities: Tensor
    """logit, [(B,) G]"""
    sh: Tensor
    """[(B,) G, K, 3]"""


class Shared(NamedTuple):
    """What all frames of an avatar have in common."""

    features: Tensor
    """[G, D], what the tri-plane knows of each Gaussian"""
    kernel_inputs: tuple[Tensor, Tensor, Tensor, Weights] | None
    """of `talker.avatar.kernels.deform_triton.deform`, where that is used"""


class Avatar(nn.Module):
    """Canonical Gaussians and the network that deforms them.

    Args:
        gaussians: the canonical set, [G, ...].
        bounds: box of the head [2, 3], dm; features of points outside are those of its border.
        poses: viewmats [T, 4, 4] of the training frames; they scale the pose token.
    """

    pose_mean: Tensor
    pose_std: Tensor

    def __init__(
        self, config: AvatarConfig, gaussians: Gaussians, bounds: Tensor, poses: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        self.canonical = nn.ParameterDict(
            {name: nn.Parameter(value.clone()) for name, value in vars(gaussians).items()}
        )
        self.planes = TriPlane(bounds, config.plane_resolutions, config.plane_channels)
        width = config.features
        self.query = nn.Linear(self.planes.out_features, width)
        self.speech_encoder = SpeechEncoder(config.speech_features, EXPRESSIONS, config.audio_net)
        self.speech_token = nn.Sequential(
            nn.Linear(EXPRESSIONS, 64), nn.ReLU(), nn.Linear(64, width)
        )
        self.eye_token = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, width))
        self.pose_token = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, width))
        self.null_token = nn.Parameter(torch.randn(width) * 0.1)
        self.blocks = nn.ModuleList(
            TokenAttention(width, config.heads) for _ in range(config.layers)
        )
        coefficients = 3 * (config.sh_degree + 1) ** 2
        self.parts = (3, 4, 3, 1, coefficients)
        self.hidden = nn.Linear(width, config.hidden)
        self.offsets = nn.Linear(config.hidden, sum(self.parts))
        nn.init.xavier_uniform_(self.offsets.weight, gain=0.1)
        nn.init.zeros_(self.offsets.bias)
        pose = _pose_vector(poses)
        self.register_buffer("pose_mean", pose.mean(0))
        self.register_buffer("pose_std", pose.std(0).clamp_min(1e-2))

    def gaussians(self) -> Gaussians:
        """The canonical set, [G, ...]."""
        return Gaussians(**dict(self.canonical.items()))

    def shared(self) -> Shared:
        """What all frames have in common; computed once for a video, or for a training step."""
        features = self.query(self.planes(self.canonical["means"]))
        if not (features.is_cuda and self._fits_one_kernel()):
            return Shared(features, None)
        return Shared(features, self._kernel_inputs(features))

    def tokens(self, expression: Tensor, eye: Tensor, pose: Tensor) -> Tensor:
        """The conditions of B frames as tokens [B, 4, D].

        Args:
            expression: [B, 10], of `speech_encoder`.
            eye: [B], 0 open .. 1 closed.
            pose: [B, 12], of `pose_vector`.
        """
        return torch.stack(
            [
                self.speech_token(expression),
                self.eye_token(EYE_SCALE * eye[:, None]),
                self.pose_token(pose),
                self.null_token.expand(len(eye), -1),
            ],
            dim=1,
        )

    def splats(self, shared: Shared, tokens: Tensor, viewmats: Tensor) -> Splats:
        """The deformed Gaussians of B frames, told by `tokens`, as seen by `viewmats`."""
        points = self.canonical["means"].detach()
        if shared.kernel_inputs is not None:
            return self._splats_by_kernel(shared.kernel_inputs, tokens, points, viewmats)
        x = shared.features[None]
        for block in self.blocks:
            x = block(x, tokens)
        offsets = self.offsets(torch.relu(self.hidden(torch.relu(x))))
        means, quats, scales, opacities, sh = offsets.split(self.parts, dim=-1)
        base = self.gaussians()
        deformed = Gaussians(
            means=base.means + means,
            quats=base.quats + quats,
            scales=base.scales + scales,
            opacities=base.opacities + opacities[..., 0],
            sh=base.sh + sh.unflatten(-1, (-1, 3)),
        )
        return as_seen(deformed, points, viewmats)

    def spoken(self, shared: Shared, speech: Tensor, eye: Tensor, viewmats: Tensor) -> Splats:
        """`splats` of speech [B, 8, 16, C] and the other arguments of `forward`."""
        expression = self.speech_encoder(speech)
        return self.splats(
            shared, self.tokens(expression, eye, self.pose_vector(viewmats)), viewmats
        )

    def _fits_one_kernel(self) -> bool:
        config = self.config
        fits = config.features in (16, 32, 64) and config.hidden in (16, 32, 64, 128)
        return fits and config.layers == 1 and config.heads <= 4

    def _kernel_inputs(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Weights]:
        """`x`, `query`, `base` and `weights` of `deform_triton.deform`."""
        from talker.avatar.kernels.deform_triton import Weights, in_columns

        block, base = self._only_block(), self.gaussians()
        flat = [base.means, base.quats, base.scales, base.opacities[:, None], base.sh.flatten(1)]
        weights = Weights(
            feed_in=block.feed_in.weight.T,
            feed_in_bias=block.feed_in.bias,
            feed_out=block.feed_out.weight.T,
            feed_out_bias=block.feed_out.bias,
            hidden=self.hidden.weight.T,
            hidden_bias=self.hidden.bias,
            heads=in_columns(self.offsets.weight.T),
            norm_attended=torch.stack([block.norm_attended.weight, block.norm_attended.bias]),
            norm_out=torch.stack([block.norm_out.weight, block.norm_out.bias]),
        )
        base = in_columns(torch.cat(flat, dim=-1) + self.offsets.bias)
        return features + block.merge.bias, block.ask(features), base, weights

    def _only_block(self) -> TokenAttention:
        block = self.blocks[0]
        assert isinstance(block, TokenAttention)
        return block

    def _splats_by_kernel(
        self,
        inputs: tuple[Tensor, Tensor, Tensor, Weights],
        tokens: Tensor,
        points: Tensor,
        viewmats: Tensor,
    ) -> Splats:
        from talker.avatar.kernels.deform_triton import deform

        x, query, base, weights = inputs
        key, merged = self._only_block().project(tokens)
        centres = camera_centres(viewmats)
        return Splats(*deform(x, query, key, merged, base, points, centres, weights))

    def pose_vector(self, viewmats: Tensor) -> Tensor:
        """What the network knows of the camera, standardised: viewmats [B, 4, 4] -> [B, 12]."""
        return (_pose_vector(viewmats) - self.pose_mean) / self.pose_std

    def forward(
        self,
        speech: Tensor,
        eye: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        height: int,
        width: int,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Render B frames.

        Args:
            speech: [B, 8, 16, C], of `speech_context`.
            eye: [B], 0 open .. 1 closed.
            viewmats: [B, 4, 4] world to OpenCV camera, dm.
            Ks: [B, 3, 3], pixels.
            shared: of `shared()`, where many calls have it in common.

        Returns:
            rgb [B, H, W, 3], premultiplied, and alpha [B, H, W, 1]: a frame is
            `rgb + (1 - alpha) * background`.
        """
        expression = self.speech_encoder(speech)
        return self.animate(expression, eye, viewmats, Ks, height, width, shared)

    def animate(
        self,
        expression: Tensor,
        eye: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        height: int,
        width: int,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` with the expressions [B, 10] that the speech would have told."""
        tokens = self.tokens(expression, eye, self.pose_vector(viewmats))
        splats = self.splats(shared or self.shared(), tokens, viewmats)
        drawn = rasterize(splats, viewmats, Ks, width, height)
        return drawn.rgb, drawn.alpha

    def save(self, folder: Path) -> None:
        """Write `config.json`, `weights.safetensors` and `point_cloud.ply` into `folder`.

        One after the other: `talker.core.files.atomic_write` makes the folder appear as a whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
        cloud = {name: value.detach().cpu().numpy() for name, value in self.canonical.items()}
        save_ply(folder / "point_cloud.ply", **cloud)
        shape = json.dumps(dataclasses.asdict(self.config), indent=2)
        (folder / "config.json").write_text(shape + "\n")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Avatar:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing, damaged or belongs to another network shape.
        """
        try:
            state = load_file(folder / "weights.safetensors")
            values = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{folder}: holds no avatar that can be read ({error}); `talker train` makes one"
            ) from error
        try:
            config = from_mapping(AvatarConfig, values, str(folder / "config.json"))
        except UserError as error:
            raise UserError(
                f"{error}; was the avatar trained by another version of talker? Train it again"
            ) from error
        names = (item.name for item in dataclasses.fields(Gaussians))
        try:
            canonical = Gaussians(**{name: state[f"canonical.{name}"] for name in names})
            avatar = cls(config, canonical, state["planes.bounds"], torch.eye(4).expand(2, 4, 4))
            avatar.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{folder}: weights.safetensors does not hold the network that config.json tells "
                f"({error}); take both from one training"
            ) from error
        return avatar.to(device).eval()


def as_seen(gaussians: Gaussians, points: Tensor, viewmats: Tensor) -> Splats:
    """Gaussians [(B,) G, ...] as the rasteriser takes them, coloured for B views.

    Args:
        points: [G, 3], the canonical means: where a Gaussian is seen from hardly changes with its
            deformation, and colours need not pull at it.
        viewmats: [B, 4, 4].
    """
    directions = F.normalize(points - camera_centres(viewmats)[:, None], dim=-1)

    def batched(x: Tensor, dims: int) -> Tensor:
        return x if x.ndim == dims else x.expand(len(viewmats), *x.shape)

    return Splats(
        means=batched(gaussians.means, 3),
        quats=batched(gaussians.quats, 3),
        scales=batched(gaussians.scales, 3).exp(),
        opacities=batched(gaussians.opacities, 2).sigmoid(),
        colors=evaluate_sh(batched(gaussians.sh, 4), directions),
    )


def camera_centres(viewmats: Tensor) -> Tensor:
    """World positions [B, 3] of cameras [B, 4, 4]."""
    return -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]


def _pose_vector(viewmats: Tensor) -> Tensor:
    """Camera-to-world rotation, row-major, and world-to-camera translation (GaussianTalker)."""
    rotation = viewmats[:, :3, :3].transpose(1, 2).flatten(1)
    return torch.cat([rotation, viewmats[:, :3, 3]], dim=1)
