"""The deformation of all Gaussians, by the network or by blendshapes, in one Triton kernel each.

The kernels compute the same as `Avatar.deform` in plain torch, which writes each intermediate
result to memory. Here, a block of Gaussians stays in registers until the values that the rasterizer
reads are complete.

The backward kernel of the network recomputes the block and writes the gradients of each row. Sums
over rows or frames are computed by matrix products instead of atomic additions, so that results are
bitwise reproducible. Blendshapes have no gradients.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from talker.avatar.blocks import GEOMETRY, HARMONICS, NetworkInputs, Weights

SLOTS = 16
"""Columns of the attention scores: 4 heads of 4 tokens; absent heads have zero values."""
TOKENS = 4
"""Condition tokens per frame."""
OUTPUTS = GEOMETRY + 3 * HARMONICS
"""Columns of all deformed parameters of a Gaussian."""
FRAMES = 16
"""Frames per block of the blendshapes, unless there is only one: the smallest height of a matrix
product in Triton."""
GAUSSIANS = 32
"""Gaussians per block of the blendshapes."""


@triton.jit
def harmonic(x, y, z, k: tl.constexpr):
    """Return number k of `sh_basis` at unit vectors."""
    c1: tl.constexpr = 0.4886025119029199
    c2: tl.constexpr = 1.0925484305920792
    c3: tl.constexpr = 0.5900435899266435
    c4: tl.constexpr = 1.445305721320277
    c5: tl.constexpr = 0.4570457994644658
    if k == 0:
        return 0.28209479177387814 + 0 * x
    elif k == 1:
        return -c1 * y
    elif k == 2:
        return c1 * z
    elif k == 3:
        return -c1 * x
    elif k == 4:
        return c2 * x * y
    elif k == 5:
        return -c2 * y * z
    elif k == 6:
        return 0.31539156525252005 * (3 * z * z - 1)
    elif k == 7:
        return -c2 * x * z
    elif k == 8:
        return c2 / 2 * (x * x - y * y)
    elif k == 9:
        return -c3 * y * (3 * x * x - y * y)
    elif k == 10:
        return 2 * c4 * x * y * z
    elif k == 11:
        return -c5 * y * (5 * z * z - 1)
    elif k == 12:
        return 0.3731763325901154 * z * (5 * z * z - 3)
    elif k == 13:
        return -c5 * x * (5 * z * z - 1)
    elif k == 14:
        return c4 * z * (x * x - y * y)
    else:
        return -c3 * x * (x * x - 3 * y * y)


@triton.jit
def _harmonics(dx, dy, dz, slot):
    """Return `sh_basis` [M, 16] of unit vectors."""
    x, y, z = dx[:, None], dy[:, None], dz[:, None]
    basis = tl.zeros((dx.shape[0], 16), tl.float32)
    for k in tl.static_range(16):
        basis = tl.where(slot[None, :] == k, harmonic(x, y, z, k), basis)
    return basis


@triton.jit
def _directions(points, camera, rows, inside, frame, slot):
    """Return the harmonics [M, 16] of the directions from the camera to the points."""
    x = tl.load(points + rows * 3, inside, 0.0) - tl.load(camera + frame * 3)
    y = tl.load(points + rows * 3 + 1, inside, 0.0) - tl.load(camera + frame * 3 + 1)
    z = tl.load(points + rows * 3 + 2, inside, 0.0) - tl.load(camera + frame * 3 + 2)
    scale = 1 / tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)
    return _harmonics(x * scale, y * scale, z * scale, slot)


@triton.jit
def _normalize(x, D: tl.constexpr):
    """Return x after LayerNorm without weights, and the reciprocal standard deviation [M, 1]."""
    x = x - tl.sum(x, 1)[:, None] / D
    scale = 1 / tl.sqrt(tl.sum(x * x, 1)[:, None] / D + 1e-5)
    return x * scale, scale


@triton.jit
def _unnormalize(gradient, normal, scale, D: tl.constexpr):
    """Return the gradient of `_normalize`."""
    mean = tl.sum(gradient, 1)[:, None] / D
    return scale * (gradient - mean - normal * tl.sum(gradient * normal, 1)[:, None] / D)


@triton.jit
def _block(
    x_ptr, query_ptr, key_ptr, merged_ptr, w1, b1, w2, b2, w3, b3, n1, n2,
    rows, here, frame, d, f, h, slot,
    D: tl.constexpr, F: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the hidden layer from the rows of `x` and their queries; return all intermediates."""
    x = tl.load(x_ptr + rows[:, None] * D + d, here, 0.0)
    query = tl.load(query_ptr + rows[:, None] * D + d, here, 0.0)
    key = tl.load(key_ptr + frame * 16 * D + slot[None, :] * D + d[:, None])
    merged = tl.load(merged_ptr + frame * 16 * D + slot[:, None] * D + d)
    scores = tl.reshape(tl.dot(query, key, input_precision=PRECISION), (M, 4, 4))
    raised = tl.exp(scores - tl.max(scores, 2)[:, :, None])
    attention = tl.reshape(raised / tl.sum(raised, 2)[:, :, None], (M, 16))
    x += tl.dot(attention.to(DOT), merged, input_precision=PRECISION)
    normal1, scale1 = _normalize(x, D)
    x1 = normal1 * tl.load(n1 + d) + tl.load(n1 + D + d)
    inner = tl.dot(x1.to(DOT), tl.load(w1 + d[:, None] * F + f), input_precision=PRECISION)
    inner = tl.maximum(inner + tl.load(b1 + f), 0.0).to(DOT)
    x = x1 + tl.dot(inner, tl.load(w2 + f[:, None] * D + d), input_precision=PRECISION)
    normal2, scale2 = _normalize(x + tl.load(b2 + d), D)
    x2 = tl.maximum(normal2 * tl.load(n2 + d) + tl.load(n2 + D + d), 0.0)
    hidden = tl.dot(x2.to(DOT), tl.load(w3 + d[:, None] * H + h), input_precision=PRECISION)
    hidden = tl.maximum(hidden + tl.load(b3 + h), 0.0).to(DOT)
    return merged, attention, normal1, scale1, x1, inner, normal2, scale2, x2, hidden


@triton.jit
def _forward(
    x_ptr, query_ptr, key_ptr, merged_ptr, base_ptr, points, camera,
    w1, b1, w2, b2, w3, b3, w4, n1, n2,
    means, quats, scales, opacities, colors,
    G, D: tl.constexpr, F: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1)
    rows = tl.program_id(0) * M + tl.arange(0, M)
    inside = rows < G
    d, f, h, slot = tl.arange(0, D), tl.arange(0, F), tl.arange(0, H), tl.arange(0, 16)
    here = inside[:, None]

    _, _, _, _, _, _, _, _, _, hidden = _block(
        x_ptr, query_ptr, key_ptr, merged_ptr, w1, b1, w2, b2, w3, b3, n1, n2,
        rows, here, frame, d, f, h, slot, D, F, H, M, DOT, PRECISION,
    )  # fmt: skip
    base = base_ptr + rows[:, None] * 64 + slot
    heads = w4 + h[:, None] * 64 + slot
    out = tl.load(base, here, 0.0) + tl.dot(hidden, tl.load(heads), input_precision=PRECISION)
    at = (frame * G + rows)[:, None].to(tl.int64)
    tl.store(means + at * 3 + slot, out, here & (slot < 3))
    tl.store(quats + at * 4 + slot - 3, out, here & (slot >= 3) & (slot < 7))
    tl.store(scales + at * 3 + slot - 7, tl.exp(out), here & (slot >= 7) & (slot < 10))
    tl.store(opacities + at + slot - 10, tl.sigmoid(out), here & (slot == 10))

    basis = _directions(points, camera, rows, inside, frame, slot)
    at = (frame * G + rows).to(tl.int64) * 3
    for channel in tl.static_range(3):
        shift = 16 + channel * 16
        sh = tl.dot(hidden, tl.load(heads + shift), input_precision=PRECISION)
        sh += tl.load(base + shift, here, 0.0)
        tl.store(colors + at + channel, tl.maximum(tl.sum(basis * sh, 1) + 0.5, 0.0), inside)


@triton.jit
def _backward(
    x_ptr, query_ptr, key_ptr, merged_ptr, base_ptr, points, camera,
    w1, b1, w2, b2, w3, b3, w4, n1, n2,
    means, quats, scales, opacities, colors,
    x1_out, inner_out, x2_out, hidden_out, inner_grad_out, x2_grad_out, hidden_grad_out, heads_out,
    x_grad_out, attention_out, scores_out, sums,
    G, D: tl.constexpr, F: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute gradients; arguments as for `_forward`, but `means` .. `colors` are gradients.

    `sums` [blocks, F + H + 5 D] gets the column sums of a block: gradients of b1, b3, b2, n2, n1.
    """
    frame = tl.program_id(1)
    rows = tl.program_id(0) * M + tl.arange(0, M)
    inside = rows < G
    d, f, h, slot = tl.arange(0, D), tl.arange(0, F), tl.arange(0, H), tl.arange(0, 16)
    here = inside[:, None]
    row = (frame * G + rows)[:, None].to(tl.int64)
    sums += (frame * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * (F + H + 5 * D)

    merged, attention, normal1, scale1, x1, inner, normal2, scale2, x2, hidden = _block(
        x_ptr, query_ptr, key_ptr, merged_ptr, w1, b1, w2, b2, w3, b3, n1, n2,
        rows, here, frame, d, f, h, slot, D, F, H, M, DOT, PRECISION,
    )  # fmt: skip
    tl.store(x1_out + row * D + d, x1.to(DOT), here)
    tl.store(inner_out + row * F + f, inner, here)
    tl.store(x2_out + row * D + d, x2.to(DOT), here)
    tl.store(hidden_out + row * H + h, hidden, here)

    base = base_ptr + rows[:, None] * 64 + slot
    heads = w4 + h[:, None] * 64 + slot
    out = tl.load(base, here, 0.0) + tl.dot(hidden, tl.load(heads), input_precision=PRECISION)
    gradient = tl.load(means + row * 3 + slot, here & (slot < 3), 0.0)
    gradient += tl.load(quats + row * 4 + slot - 3, here & (slot >= 3) & (slot < 7), 0.0)
    size = here & (slot >= 7) & (slot < 10)
    gradient += tl.where(size, tl.load(scales + row * 3 + slot - 7, size, 0.0) * tl.exp(out), 0.0)
    opacity = tl.sigmoid(out)
    gradient += (
        tl.load(opacities + row + slot - 10, here & (slot == 10), 0.0) * opacity * (1 - opacity)
    )
    gradient = gradient.to(DOT)
    tl.store(heads_out + row * 64 + slot, gradient, here)
    transposed = w4 + slot[:, None] * 1 + h[None, :] * 64
    hidden_grad = tl.dot(gradient, tl.load(transposed), input_precision=PRECISION)
    basis = _directions(points, camera, rows, inside, frame, slot)
    at = (frame * G + rows).to(tl.int64) * 3
    for channel in tl.static_range(3):
        shift = 16 + channel * 16
        sh = tl.dot(hidden, tl.load(heads + shift), input_precision=PRECISION)
        sh += tl.load(base + shift, here, 0.0)
        lit = tl.sum(basis * sh, 1) + 0.5 > 0
        gradient = basis * tl.load(colors + at + channel, inside & lit, 0.0)[:, None]
        gradient = gradient.to(DOT)
        tl.store(heads_out + row * 64 + shift + slot, gradient, here)
        hidden_grad += tl.dot(gradient, tl.load(transposed + shift), input_precision=PRECISION)

    # These values are read from memory again, because keeping them in registers would spill.
    tl.debug_barrier()
    hidden = tl.load(hidden_out + row * H + h, here, 0.0)
    hidden_grad = tl.where(hidden > 0, hidden_grad, 0.0)
    tl.store(sums + F + h, tl.sum(hidden_grad, 0))
    hidden_grad = hidden_grad.to(DOT)
    tl.store(hidden_grad_out + row * H + h, hidden_grad, here)
    gradient = tl.dot(
        hidden_grad, tl.load(w3 + d[None, :] * H + h[:, None]), input_precision=PRECISION
    )
    x2 = tl.load(x2_out + row * D + d, here, 0.0)
    gradient = tl.where(x2 > 0, gradient, 0.0)
    tl.store(sums + F + H + D + d, tl.sum(gradient * normal2, 0))
    tl.store(sums + F + H + 2 * D + d, tl.sum(gradient, 0))
    gradient = _unnormalize(gradient * tl.load(n2 + d), normal2, scale2, D)
    tl.store(sums + F + H + d, tl.sum(gradient, 0))
    tl.store(x2_grad_out + row * D + d, gradient.to(DOT), here)
    inner_grad = tl.dot(
        gradient.to(DOT), tl.load(w2 + f[None, :] * D + d[:, None]), input_precision=PRECISION
    )
    inner = tl.load(inner_out + row * F + f, here, 0.0)
    inner_grad = tl.where(inner > 0, inner_grad, 0.0)
    tl.store(sums + f, tl.sum(inner_grad, 0))
    inner_grad = inner_grad.to(DOT)
    tl.store(inner_grad_out + row * F + f, inner_grad, here)
    gradient += tl.dot(
        inner_grad, tl.load(w1 + d[None, :] * F + f[:, None]), input_precision=PRECISION
    )
    tl.store(sums + F + H + 3 * D + d, tl.sum(gradient * normal1, 0))
    tl.store(sums + F + H + 4 * D + d, tl.sum(gradient, 0))
    gradient = _unnormalize(gradient * tl.load(n1 + d), normal1, scale1, D)
    given = gradient.to(DOT)
    tl.store(x_grad_out + row * D + d, given, here)

    scores = attention * tl.dot(given, tl.trans(merged), input_precision=PRECISION)
    groups = tl.sum(tl.reshape(scores, (M, 4, 4)), 2)[:, :, None]
    scores -= tl.reshape(tl.reshape(attention, (M, 4, 4)) * groups, (M, 16))
    tl.store(scores_out + row * 16 + slot, scores.to(DOT), here)
    tl.store(attention_out + row * 16 + slot, attention.to(DOT), here)


class Launch(NamedTuple):
    """How a kernel is launched on the GPU; the values below were the fastest on an H100 or H200."""

    rows: int
    """Gaussians per block; with 64, Triton 3.6 reads beyond its shared memory"""
    warps: int


FORWARD, BACKWARD, HIDDEN = Launch(32, 1), Launch(32, 2), Launch(32, 4)


class _Deform(torch.autograd.Function):
    @staticmethod
    def forward(ctx, exact, points, camera, x, query, keys, merged, base, *weights):
        kind = torch.float32 if exact else torch.bfloat16
        weights = Weights(*weights)
        multiplied = {"linear1", "linear2", "hidden", "heads"}
        matrices = [
            value.to(kind) if name in multiplied else value
            for name, value in weights._asdict().items()
        ]
        inputs = [
            x.contiguous(), query.to(kind).contiguous(), keys.to(kind).contiguous(),
            merged.to(kind).contiguous(), base.contiguous(), points.contiguous(),
            camera.contiguous(), *(m.contiguous() for m in matrices),
        ]  # fmt: skip
        frames, count = len(keys), len(x)
        outputs = [x.new_empty(frames, count, *shape) for shape in ((3,), (4,), (3,), (), (3,))]
        _launch(_forward, FORWARD, exact, inputs, weights, outputs, frames, count)
        ctx.exact, ctx.shape = exact, (frames, count)
        ctx.save_for_backward(*inputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients):
        inputs = ctx.saved_tensors
        weights = Weights(*inputs[7:])
        frames, count = ctx.shape
        _, query, keys = inputs[:3]
        features, inner = weights.linear1.shape
        hidden = weights.hidden.shape[1]
        widths = (features, inner, features, hidden, inner, features, hidden, OUTPUTS)
        kept = [
            query.new_empty(frames, count, width) for width in (*widths, features, SLOTS, SLOTS)
        ]
        blocks = frames * triton.cdiv(count, BACKWARD.rows)
        sums = torch.empty(blocks, inner + hidden + 5 * features, device=query.device)
        gradients = [g.contiguous() for g in gradients]
        others = [*gradients, *kept, sums]
        _launch(_backward, BACKWARD, ctx.exact, inputs, weights, others, *ctx.shape)
        *_, heads_grad, x_grad, attention, scores = kept
        x1, fed, x2, hid, fed_grad, x2_grad, hid_grad, out_grad = (
            k.flatten(0, 1) for k in kept[:8]
        )
        b1, b3, b2, *norms = sums.sum(0).split([inner, hidden, *[features] * 5])
        found = Weights(
            linear1=(x1.T @ fed_grad).float(),
            linear1_bias=b1,
            linear2=(fed.T @ x2_grad).float(),
            linear2_bias=b2,
            hidden=(x2.T @ hid_grad).float(),
            hidden_bias=b3,
            heads=(hid.T @ out_grad).float(),
            norm1=torch.stack(norms[2:]),
            norm2=torch.stack(norms[:2]),
        )
        return (
            *(None, None, None),
            x_grad.sum(0, dtype=torch.float32),
            (scores.transpose(0, 1).flatten(1) @ keys.flatten(0, 1)).float(),
            (scores.transpose(1, 2) @ query).float(),
            (attention.transpose(1, 2) @ x_grad).float(),
            heads_grad.sum(0, dtype=torch.float32),
            *found,
        )


def _launch(kernel, layout, exact, inputs, weights, others, frames, count):
    features, inner = weights.linear1.shape
    kernel[(triton.cdiv(count, layout.rows), frames)](
        *inputs, *others, count,
        D=features, F=inner, H=weights.hidden.shape[1], M=layout.rows,
        DOT=tl.float32 if exact else tl.bfloat16, PRECISION="ieee" if exact else "tf32",
        num_warps=layout.warps,
    )  # fmt: skip


def deform(
    shared: NetworkInputs,
    keys: Tensor,
    values: Tensor,
    points: Tensor,
    centers: Tensor,
    exact: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Deform G Gaussians for B frames.

    Args:
        keys: [B, heads, 4, D / heads] of the tokens, at most 4 heads.
        values: [B, heads, 4, D], output-projected values of the tokens.
        points: [G, 3], positions that the viewing directions are computed from; no gradient.
        centers: [B, 3], world positions of the cameras; no gradient.
        exact: multiply in float32 instead of bfloat16.

    Returns:
        means [B, G, 3], quats [B, G, 4], scales [B, G, 3], opacities [B, G] and colors [B, G, 3]
        as `rasterize` takes them.
    """
    x, query, base, weights = shared
    keys, values = token_slots(keys, values)
    return _Deform.apply(exact, points, centers, x, query, keys, values, base, *weights)


def token_slots(
    keys: Float[Tensor, "B heads 4 width"], values: Float[Tensor, "B heads 4 D"]
) -> tuple[Float[Tensor, "B 16 D"], Float[Tensor, "B 16 D"]]:
    """Return the keys and values of `deform` in the layout of the kernels, both [B, 16, D].

    Row 4 h + n holds the key or value of head h and token n. The key is zero in the columns of the
    other heads.
    """
    heads = keys.shape[1]
    missing = (0, 0, 0, SLOTS - TOKENS * heads)
    own_columns = torch.eye(heads, device=keys.device)[:, None, :, None]
    keys = (keys[:, :, :, None] * own_columns).flatten(3).flatten(1, 2)
    return F.pad(keys, missing), F.pad(values.flatten(1, 2), missing)


@triton.jit
def _hidden(
    x_ptr, query_ptr, slots, w1, b1, w2, b2, w3, b3, n1, n2, out,
    G, D: tl.constexpr, F: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1)
    rows = tl.program_id(0) * M + tl.arange(0, M)
    d, f, h, slot = tl.arange(0, D), tl.arange(0, F), tl.arange(0, H), tl.arange(0, 16)
    here = (rows < G)[:, None]
    slots += frame * 16 * D  # a frame has 32 rows, and `_block` adds the other 16
    _, _, _, _, _, _, _, _, _, hidden = _block(
        x_ptr, query_ptr, slots, slots + 16 * D, w1, b1, w2, b2, w3, b3, n1, n2,
        rows, here, frame, d, f, h, slot, D, F, H, M, tl.float32, "tf32x3",
    )  # fmt: skip
    tl.store(out + (frame * G + rows)[:, None] * H + h, hidden, here)


def hidden_layer(
    shared: NetworkInputs, slots: Float[Tensor, "B columns"]
) -> Float[Tensor, "B G H"]:
    """Return the hidden layer [B, G, H] of G Gaussians in B frames, without gradients.

    Args:
        shared: inputs that are the same for all frames.
        slots: [B, 32 D], the keys and the values of `token_slots` of each frame.
    """
    weights = shared.weights
    (count, features), (hidden, _) = shared.x.shape, weights.heads.shape
    out = slots.new_empty(len(slots), count, hidden)
    kernel: Any = _hidden
    kernel[(triton.cdiv(count, HIDDEN.rows), len(slots))](
        shared.x, shared.query, slots, *weights[:6], weights.norm1, weights.norm2, out,
        count, D=features, F=weights.linear1.shape[1], H=hidden, M=HIDDEN.rows,
        num_warps=HIDDEN.warps,
    )  # fmt: skip
    return out


class BlendshapeInputs(NamedTuple):
    """What the kernel reads of `Blendshapes`, in blocks of `GAUSSIANS` Gaussians, padded with 0."""

    mean: Float[Tensor, "blocks P 32"]
    """[blocks, P, GAUSSIANS], mean parameters"""
    shapes: Float[Tensor, "blocks 14 K 32"]
    """[blocks, 14, K, GAUSSIANS] in half precision; K is padded with zeros to a power of 2, at
    least 16"""


@triton.jit
def _parameter(w, shapes, mean, p, K: tl.constexpr, M: tl.constexpr):
    """Return the parameter p [FRAMES, M] of a block of Gaussians for the weights w [FRAMES, K]."""
    k, column = tl.arange(0, K), tl.arange(0, M)
    shape = tl.load(shapes + (p * K + k)[:, None] * M + column)
    if w.shape[0] == 1:  # less than the smallest height of a matrix product
        moved = tl.sum(tl.trans(w).to(tl.float32) * shape, 0)[None, :]
    else:
        moved = tl.dot(w, shape)
    return tl.load(mean + p * M + column) + moved


@triton.jit
def _blend(
    weights, shapes, mean, points, camera, means, quats, scales, opacities, colors,
    B, G, K: tl.constexpr, HARMONICS: tl.constexpr, FRAMES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    frames = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    column = tl.arange(0, M)
    rows = block * M + column
    real, inside = frames < B, rows < G
    here = real[:, None] & inside
    at = frames.to(tl.int64)[:, None] * G + rows
    shapes += block.to(tl.int64) * 14 * K * M
    mean += block.to(tl.int64) * (11 + 3 * HARMONICS) * M
    w = tl.load(weights + frames[:, None] * K + tl.arange(0, K), real[:, None], 0.0)
    for p in tl.static_range(11):
        value = _parameter(w, shapes, mean, p, K, M)
        if p < 3:
            tl.store(means + at * 3 + p, value, here)
        elif p < 7:
            tl.store(quats + at * 4 + p - 3, value, here)
        elif p < 10:
            tl.store(scales + at * 3 + p - 7, tl.exp(value), here)
        else:
            tl.store(opacities + at, tl.sigmoid(value), here)

    x = tl.load(points + rows * 3, inside, 0.0) - tl.load(camera + frames * 3, real, 0.0)[:, None]
    y = (
        tl.load(points + rows * 3 + 1, inside, 0.0)
        - tl.load(camera + frames * 3 + 1, real, 0.0)[:, None]
    )
    z = (
        tl.load(points + rows * 3 + 2, inside, 0.0)
        - tl.load(camera + frames * 3 + 2, real, 0.0)[:, None]
    )
    scale = 1 / tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)
    x, y, z = x * scale, y * scale, z * scale
    for c in tl.static_range(3):
        constant = _parameter(w, shapes, mean, 11 + c, K, M)
        color = harmonic(x, y, z, 0) * constant + 0.5
        for k in tl.static_range(1, HARMONICS):
            color += harmonic(x, y, z, k) * tl.load(mean + (11 + 3 * k + c) * M + column)
        tl.store(colors + at * 3 + c, tl.maximum(color, 0.0), here)


def blendshape_inputs(
    mean: Float[Tensor, "G P"], shapes: Float[Tensor, "K G 14"]
) -> BlendshapeInputs:
    """Return the fields of `Blendshapes` in the layout of the kernel."""
    missing = -len(mean) % GAUSSIANS
    mean = F.pad(mean, (0, 0, 0, missing)).unflatten(0, (-1, GAUSSIANS))
    padded = max(16, triton.next_power_of_2(len(shapes)))
    shapes = F.pad(shapes, (0, 0, 0, missing, 0, padded - len(shapes))).half()
    shapes = shapes.unflatten(1, (-1, GAUSSIANS))
    return BlendshapeInputs(
        mean.transpose(1, 2).contiguous(), shapes.permute(1, 3, 0, 2).contiguous()
    )


def blend(
    shared: BlendshapeInputs,
    weights: Float[Tensor, "B K"],
    points: Float[Tensor, "G 3"],
    centers: Float[Tensor, "B 3"],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Deform G Gaussians for B frames.

    Args:
        weights: [B, K], weights of the blendshapes.
        points: [G, 3], positions that the viewing directions are computed from.
        centers: [B, 3], world positions of the cameras.

    Returns:
        means [B, G, 3], quats [B, G, 4], scales [B, G, 3], opacities [B, G] and colors [B, G, 3]
        as `rasterize` takes them.
    """
    mean, shapes = shared
    frames, count, padded = len(weights), len(points), shapes.shape[2]
    given = F.pad(weights.half(), (0, padded - weights.shape[1]))
    sizes = ((3,), (4,), (3,), (), (3,))
    means, quats, scales, opacities, colors = (
        mean.new_empty(frames, count, *shape) for shape in sizes
    )
    together = 1 if frames == 1 else FRAMES
    kernel: Any = _blend
    kernel[(triton.cdiv(frames, together), triton.cdiv(count, GAUSSIANS))](
        given.contiguous(), shapes, mean, points.contiguous(), centers.contiguous(),
        means, quats, scales, opacities, colors,
        frames, count, K=padded, HARMONICS=(mean.shape[1] - 11) // 3,
        FRAMES=together, M=GAUSSIANS, num_warps=2,
    )  # fmt: skip
    return means, quats, scales, opacities, colors
