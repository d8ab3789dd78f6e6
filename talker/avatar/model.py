"""The avatar: canonical 3D Gaussians, deformed in each frame by speech, blink, brows and head pose.

As in GaussianTalker (ACM MM 2024), a tri-plane gives each Gaussian a feature, and attention to the
condition tokens of a frame turns it into offsets of position, rotation, scale, opacity and color.
The five deformation heads share their hidden layer, so that one matrix product serves all of them.
The brows are a linear blendshape, which moves each Gaussian in proportion to their raise. They are
not a token, because the network would recognize training frames by their brows, and the mouth would
follow the brows instead of the speech.

Every image is computed from speech in the same three steps: `speech_to_expression`, `deform` and
`rasterize`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from talker.avatar import blendshapes
from talker.avatar.blendshapes import Affine, Blendshapes, WeightNetwork, affine
from talker.avatar.blocks import NetworkInputs, TokenAttention, TriPlane, network_inputs
from talker.avatar.expression import EXPRESSIONS, SpeechToExpression
from talker.avatar.gaussians import Gaussians, camera_centers, save_ply, to_view
from talker.avatar.rasterize import Splats, rasterize
from talker.clip import BROKEN_ZIP, MAX_SIZE, check_regular, load_json
from talker.core.config import from_mapping, validated
from talker.data.layout import Folder
from talker.errors import UserError

FORMAT_VERSION = 3
"""Version of the avatar format, stored in config.json. Avatars of versions other than this one and
`WITHOUT_BROWS` are refused."""
WITHOUT_BROWS = 2
"""Version of avatars whose brows do not move."""
EYE_SCALE = 4.0
"""Factor by which the eye closure (0..1) is multiplied at the input of the network. A blink is then
about as large as the other conditions, which are standardized; unscaled, small avatars never learn
to blink."""

TOKEN_UNITS = (64, 32, 64)
"""Number of hidden units in the networks of the speech, eye and pose token."""


@validated
class AvatarConfig:
    """Shape of the network and what it was trained on; stored with the weights."""

    image_size: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    """Longer side of the training images in pixels."""
    speech_features: int
    """Channels C of a speech window [16, C]."""
    encoder: str
    """Name of the speech encoder that made the windows."""
    sh_degree: int
    """Degree of the spherical harmonics of the colors."""
    plane_resolutions: tuple[int, ...]
    """Side lengths of the tri-planes in cells."""
    plane_channels: int
    """Channels of each tri-plane."""
    features: int
    """Width of tokens, queries and attention."""
    heads: int
    """Number of attention heads."""
    layers: int
    """Number of attention blocks."""
    hidden: int
    """Width of the hidden layer that all output layers of the deformation network share."""


class Shared(NamedTuple):
    """Intermediate results of the network that are the same for all frames of an avatar."""

    features: Tensor
    """[G, D], tri-plane features of the Gaussians."""
    fused: NetworkInputs | None = None
    """Inputs of the fused kernel, if it is used."""
    weights: WeightNetwork | None = None
    """Network for the weights of the blendshapes, on a GPU if the avatar has blendshapes and its
    network fits the fused kernel."""


class Avatar(nn.Module):
    """Canonical Gaussians and the network that deforms them.

    Args:
        gaussians: canonical Gaussians [G, ...].
        bounds: bounding box of the head [2, 3], dm.
        poses: world-to-camera matrices [T, 4, 4] of the training frames; their mean and standard
            deviation standardize the pose token.
    """

    pose_mean: Tensor
    pose_std: Tensor
    blendshapes: Blendshapes | None = None
    """Blendshapes that replace the network in `deform`, on the device of the avatar."""

    def __init__(
        self,
        config: AvatarConfig,
        gaussians: Gaussians,
        bounds: Float[Tensor, "2 3"],
        poses: Float[Tensor, "T 4 4"],
    ) -> None:
        super().__init__()
        self.config = config
        self.canonical = nn.ParameterDict(
            {name: nn.Parameter(value.clone()) for name, value in vars(gaussians).items()}
        )
        self.planes = TriPlane(bounds, config.plane_resolutions, config.plane_channels)
        width = config.features
        self.feature_proj = nn.Linear(self.planes.out_features, width)
        self.speech_to_expression = SpeechToExpression(config.speech_features)
        speech, eye, pose = TOKEN_UNITS
        self.speech_token = nn.Sequential(
            nn.Linear(EXPRESSIONS, speech), nn.ReLU(), nn.Linear(speech, width)
        )
        self.eye_token = nn.Sequential(nn.Linear(1, eye), nn.ReLU(), nn.Linear(eye, width))
        self.pose_token = nn.Sequential(nn.Linear(12, pose), nn.ReLU(), nn.Linear(pose, width))
        self.null_token = nn.Parameter(torch.randn(width) * 0.1)
        self.blocks = nn.ModuleList(
            TokenAttention(width, config.heads) for _ in range(config.layers)
        )
        coefficients = 3 * (config.sh_degree + 1) ** 2
        self.parts = (3, 4, 3, 1, coefficients)
        self.hidden = nn.Linear(width, config.hidden)
        self.heads = nn.Linear(config.hidden, sum(self.parts))
        nn.init.xavier_uniform_(self.heads.weight, gain=0.1)
        nn.init.zeros_(self.heads.bias)
        shift = nn.Linear(32, 3, bias=False)
        nn.init.xavier_uniform_(shift.weight, gain=0.1)
        self.brow_shape = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), shift)
        pose = _pose_vector(poses)
        self.register_buffer("pose_mean", pose.mean(0))
        self.register_buffer("pose_std", pose.std(0).clamp_min(1e-2))

    @property
    def device(self) -> torch.device:
        return self.pose_mean.device

    @property
    def moves_brows(self) -> bool:
        """Whether the brows can move; those of an avatar of version `WITHOUT_BROWS` cannot."""
        return any(bool(value.any()) for value in self.brow_shape[-1].parameters())

    def gaussians(self) -> Gaussians:
        """Return the canonical Gaussians [G, ...]."""
        return Gaussians(**dict(self.canonical.items()))

    def shared(self) -> Shared:
        """Compute what is the same for all frames, once for a video or a training step.

        It is only valid until the parameters or the blendshapes of the avatar are replaced.
        """
        features = self.feature_proj(self.planes(self.canonical["means"]))
        if not (features.is_cuda and self._fits_fused_kernel()):
            return Shared(features)
        if self.blendshapes is None:
            return Shared(features, fused=self.fused_inputs(features, self.gaussians()))
        return Shared(features, weights=self.weight_network(self.blendshapes, features))

    def fused_inputs(self, features: Float[Tensor, "G D"], gaussians: Gaussians) -> NetworkInputs:
        """Prepare the inputs of the fused kernel for Gaussians with tri-plane features [G, D]."""
        return network_inputs(features, gaussians, self._only_block(), self.hidden, self.heads)

    def _fits_fused_kernel(self) -> bool:
        config = self.config
        fits = config.features in (16, 32, 64) and config.hidden in (16, 32, 64, 128)
        return fits and config.layers == 1 and config.heads <= 4

    def _only_block(self) -> TokenAttention:
        block = self.blocks[0]
        assert isinstance(block, TokenAttention)
        return block

    def pose_vector(self, viewmats: Float[Tensor, "B rows 4"]) -> Float[Tensor, "B 12"]:
        """Return the standardized poses [B, 12] of cameras [B, 3 or 4, 4] for the network."""
        return (_pose_vector(viewmats) - self.pose_mean) / self.pose_std

    def tokens(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B 2"],
        pose: Float[Tensor, "B 12"],
    ) -> Float[Tensor, "B 4 D"]:
        """Return the condition tokens [B, 4, D] of B frames: speech, eye, pose and a constant.

        Args:
            expression: [B, 10], output of `speech_to_expression`.
            eye: [B, 2], eye closure (0 open .. 1 closed) and raise of the brows (-1 .. 1).
            pose: [B, 12], output of `pose_vector`.
        """
        return self._tokens_from_units(self._token_units(expression, eye, pose).relu())

    @property
    def _token_networks(self) -> tuple[nn.Sequential, ...]:
        return self.speech_token, self.eye_token, self.pose_token

    def _token_units(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B 2"],
        pose: Float[Tensor, "B 12"],
    ) -> Float[Tensor, "B units"]:
        """Return the hidden units of the networks of `tokens`, before their activation."""
        inputs = expression, EYE_SCALE * eye[:, :1], pose
        parts = zip(self._token_networks, inputs, strict=True)
        return torch.cat([network[0](given) for network, given in parts], dim=1)

    def _tokens_from_units(self, units: Float[Tensor, "B units"]) -> Float[Tensor, "B 4 D"]:
        """Return `tokens` from the activated hidden units of their networks."""
        parts = zip(self._token_networks, units.split(TOKEN_UNITS, dim=1), strict=True)
        null = self.null_token.expand(len(units), -1)
        return torch.stack([*(network[2](part) for network, part in parts), null], dim=1)

    def deform(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B 2"],
        viewmats: Float[Tensor, "B 4 4"],
        shared: Shared | None = None,
        pose: Float[Tensor, "B 12"] | None = None,
    ) -> Splats:
        """Deform the Gaussians for B frames.

        Args:
            expression: [B, 10], output of `speech_to_expression`.
            eye: [B, 2], eye closure (0 open .. 1 closed) and raise of the brows (-1 .. 1).
            viewmats: [B, 4, 4] world to OpenCV camera, dm.
            shared: output of `shared()`, which several calls can reuse.
            pose: [B, 12], used instead of the `pose_vector` of `viewmats`.
        """
        shared = shared or self.shared()
        blendshapes = self.blendshapes
        if blendshapes is not None and shared.weights is not None and pose is None:
            return self._blend(blendshapes, shared.weights(expression, eye, viewmats), viewmats)
        tokens = self.tokens(expression, eye, self.pose_vector(viewmats) if pose is None else pose)
        brows = eye[:, 1]
        points = self.canonical["means"].detach()
        if shared.fused is not None:
            from talker.avatar.kernels.deform_triton import deform

            keys, values = self._only_block().project_tokens(tokens)
            splats = Splats(*deform(shared.fused, keys, values, points, camera_centers(viewmats)))
            return splats._replace(means=splats.means + self.brow_offsets(shared.features, brows))
        if blendshapes is not None and points.is_cuda:
            weights = self.blendshape_weights(blendshapes, tokens, brows, shared)
            return self._blend(blendshapes, weights, viewmats)
        return to_view(self.deformed(tokens, brows, shared), points, viewmats)

    def _blend(self, blendshapes: Blendshapes, weights: Tensor, viewmats: Tensor) -> Splats:
        """Return the Gaussians for weights [B, K] of blendshapes and cameras [B, 4, 4] on a GPU."""
        from talker.avatar.kernels.deform_triton import blend

        points = self.canonical["means"].detach()
        return Splats(*blend(blendshapes.kernel_inputs, weights, points, camera_centers(viewmats)))

    def deformed(
        self, tokens: Float[Tensor, "B 4 D"], brows: Float[Tensor, "B"], shared: Shared
    ) -> Gaussians:
        """Return the raw parameters [B, G, ...] of the Gaussians in B frames.

        Args:
            tokens: [B, 4, D], output of `tokens`.
            brows: [B], raise of the brows (-1 .. 1).
            shared: output of `shared`.
        """
        if self.blendshapes is not None:
            weights = self.blendshape_weights(self.blendshapes, tokens, brows, shared)
            return self.blendshapes.gaussians(weights)
        offsets = self.offsets(shared.features, tokens, brows)
        means, quats, scales, opacities, sh = offsets.split(self.parts, dim=-1)
        base = self.gaussians()
        return Gaussians(
            means=base.means + means,
            quats=base.quats + quats,
            scales=base.scales + scales,
            opacities=base.opacities + opacities[..., 0],
            sh=base.sh + sh.unflatten(-1, (-1, 3)),
        )

    def blendshape_weights(
        self,
        blendshapes: Blendshapes,
        tokens: Float[Tensor, "B 4 D"],
        brows: Float[Tensor, "B"],
        shared: Shared,
    ) -> Float[Tensor, "B K"]:
        """Return the weights [B, K] of blendshapes in B frames, as in `deformed`."""
        offsets = self.offsets(shared.features[blendshapes.anchors], tokens, brows)
        return blendshapes.weights(self._anchors(blendshapes).flat() + offsets)

    def _anchors(self, blendshapes: Blendshapes) -> Gaussians:
        """Return the canonical Gaussians that are anchors of the blendshapes."""
        values = self.canonical.items()
        return Gaussians(**{name: value[blendshapes.anchors] for name, value in values})

    @torch.no_grad()
    def weight_network(
        self, blendshapes: Blendshapes, features: Float[Tensor, "G D"]
    ) -> WeightNetwork:
        """Return the fast form of `blendshape_weights`, from the tri-plane features [G, D]."""

        def units(conditions: Tensor) -> Tensor:
            expression, eye, pose = conditions.split((EXPRESSIONS, 2, 12), dim=1)
            return self._token_units(expression, eye, self.pose_vector(pose.unflatten(1, (3, 4))))

        def keys_and_values(units: Tensor) -> Tensor:
            from talker.avatar.kernels.deform_triton import token_slots

            tokens = self._tokens_from_units(units)
            return torch.cat(token_slots(*self._only_block().project_tokens(tokens)), 1).flatten(1)

        anchors, features = self._anchors(blendshapes), features[blendshapes.anchors]
        solver = blendshapes.solver.unflatten(0, (len(features), -1))
        by_hidden = torch.einsum("apk,ph->ahk", solver, self.heads.weight)
        still = anchors.flat() + self.heads.bias
        return WeightNetwork(
            units=affine(units, EXPRESSIONS + 2 + 12, features.device),
            keys_and_values=affine(keys_and_values, sum(TOKEN_UNITS), features.device),
            anchors=self.fused_inputs(features, anchors),
            output=Affine(by_hidden.flatten(0, 1), blendshapes.weights(still[None])[0]),
            brows=torch.einsum("apk,ap->k", solver[:, :3], self.brow_shape(features)),
        )

    def offsets(
        self,
        features: Float[Tensor, "G D"],
        tokens: Float[Tensor, "B 4 D"],
        brows: Float[Tensor, "B"],
    ) -> Float[Tensor, "B G P"]:
        """Return the offsets of the raw parameters of Gaussians, in the order of `Gaussians.flat`.

        Args:
            features: [G, D], `shared().features` of all Gaussians or of some of them.
            tokens: [B, 4, D], output of `tokens`.
            brows: [B], raise of the brows (-1 .. 1).
        """
        x = features[None]
        for block in self.blocks:
            x = block(x, tokens)
        offsets = self.heads(torch.relu(self.hidden(torch.relu(x))))
        means, others = offsets.split((3, offsets.shape[-1] - 3), dim=-1)
        return torch.cat([means + self.brow_offsets(features, brows), others], dim=-1)

    def brow_offsets(
        self, features: Float[Tensor, "G D"], brows: Float[Tensor, "B"]
    ) -> Float[Tensor, "B G 3"]:
        """Return by how far the brows move Gaussians with features [G, D] in B frames, in dm."""
        return brows[:, None, None] * self.brow_shape(features)

    def attention(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B 2"],
        viewmats: Float[Tensor, "B 4 4"],
        shared: Shared,
    ) -> Float[Tensor, "B G 4"]:
        """Return how much each Gaussian attends to the speech, eye, pose and null token.

        The weights are means over heads and blocks, and their sum is 1. The arguments are the same
        as for `deform`.
        """
        tokens = self.tokens(expression, eye, self.pose_vector(viewmats))
        x = shared.features[None]
        weights = []
        for block in self.blocks:
            assert isinstance(block, TokenAttention)
            weights.append(block.weights(x, block.project_tokens(tokens)[0]).mean(2))
            x = block(x, tokens)
        return torch.stack(weights).mean(0)

    def render_from_expression(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B 2"],
        viewmats: Float[Tensor, "B 4 4"],
        Ks: Float[Tensor, "B 3 3"],
        height: int,
        width: int,
        shared: Shared | None = None,
    ) -> tuple[Float[Tensor, "B {height} {width} 3"], Float[Tensor, "B {height} {width} 1"]]:
        """Render B frames; the other arguments are the same as for `deform`.

        Args:
            Ks: [B, 3, 3] intrinsics in pixels.
            height: height of the images in pixels.
            width: width of the images in pixels.

        Returns:
            rgb [B, H, W, 3], premultiplied, and alpha [B, H, W, 1]: a frame is
            `rgb + (1 - alpha) * background`.
        """
        splats = self.deform(expression, eye, viewmats, shared)
        rendered = rasterize(splats, viewmats, Ks, width, height)
        return rendered.rgb, rendered.alpha

    def serialized(self) -> bytes:
        """Return the content of weights.safetensors, whose SHA-256 identifies the avatar."""
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        return save_tensors(state)

    def save(self, folder: Path) -> None:
        """Write config.json, weights.safetensors, point_cloud.ply and, if any, the blendshapes."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.serialized()
        (folder / "weights.safetensors").write_bytes(weights)
        if self.blendshapes is not None:
            self.blendshapes.save(folder / blendshapes.FILE, hashlib.sha256(weights).hexdigest())
        self.save_point_cloud(folder / "point_cloud.ply")
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def save_point_cloud(self, path: Path) -> None:
        """Write the canonical Gaussians to a .ply file, as viewers of Gaussian splatting read."""
        save_ply(path, self.gaussians())

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str = "cpu") -> "Avatar":
        """Read what `save` wrote, from a folder or from inside a zip archive.

        Raises:
            UserError: a file is missing, damaged, of another format version, or belongs to a
                network of another shape.
        """
        try:
            check_regular(folder / "weights.safetensors")
            weights = (folder / "weights.safetensors").read_bytes()
            state = load_tensors(weights)
            values = load_json(folder / "config.json")
        except (OSError, ValueError, SafetensorError, UserError, *BROKEN_ZIP) as error:
            raise UserError(
                f"{folder} cannot be read as an avatar ({error}). Give a folder that "
                "`talker train` wrote."
            ) from error
        brows = values.get("format_version") != WITHOUT_BROWS
        config = _read_config(values, folder / "config.json")
        try:
            avatar = cls.from_state(config, state, brows).to(device)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{folder} contains a weights.safetensors that does not belong to its "
                f"config.json ({error}). Use the two files of the same training run."
            ) from error
        if (file := folder / blendshapes.FILE).exists():
            avatar.blendshapes = Blendshapes.load(
                file,
                hashlib.sha256(weights).hexdigest(),
                (len(avatar.canonical["means"]), sum(avatar.parts)),
                device,
            )
        return avatar

    @classmethod
    def from_state(
        cls, config: AvatarConfig, state: dict[str, Tensor], brows: bool = True
    ) -> "Avatar":
        """Create an avatar for rendering from the tensors of its `state_dict`.

        Args:
            config: shape of the network.
            state: tensors by name.
            brows: whether the brows move; those of version `WITHOUT_BROWS` do not.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: the tensors belong to a network of another shape.
        """
        bounds = state["planes.bounds"]
        if bounds.shape != (2, 3):
            raise RuntimeError(f"planes.bounds has the shape {list(bounds.shape)}, not [2, 3]")
        if config.layers > len(state):
            raise RuntimeError(f"there are fewer tensors than layers ({config.layers})")
        names = (item.name for item in dataclasses.fields(Gaussians))
        canonical = Gaussians(**{name: state[f"canonical.{name}"] for name in names})
        avatar = cls(config, canonical, bounds, torch.eye(4).expand(2, 4, 4))
        if not brows:
            shape = avatar.brow_shape.state_dict()
            state = state | {f"brow_shape.{k}": torch.zeros_like(v) for k, v in shape.items()}
        avatar.load_state_dict(state)
        return avatar.eval()


def _read_config(values: object, path: Folder) -> AvatarConfig:
    """Return the content of a config.json; UserError if it is of another format version."""
    if not isinstance(values, dict):
        raise UserError(
            f"{path} contains a value of type {type(values).__name__}. It must contain a JSON "
            "object."
        )
    version = values.pop("format_version", 1)
    if version not in (FORMAT_VERSION, WITHOUT_BROWS):
        raise UserError(
            f"{path} has format version {version}, but this version of talker reads "
            f"versions {WITHOUT_BROWS} and {FORMAT_VERSION}. Train the avatar again with `talker "
            "train`, or use the version of talker that wrote it."
        )
    return from_mapping(AvatarConfig, values, str(path))


def _pose_vector(viewmats: Float[Tensor, "B rows 4"]) -> Float[Tensor, "B 12"]:
    """Return camera-to-world rotations, row-major, and world-to-camera translations [B, 12]."""
    rotation = viewmats[:, :3, :3].transpose(1, 2).flatten(1)
    return torch.cat([rotation, viewmats[:, :3, 3]], dim=1)
