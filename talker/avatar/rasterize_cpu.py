"""Differentiable Gaussian rasteriser for the CPU: numba kernels with hand-written gradients.

Same image as gsplat 1.5.3 ("classic" mode): EWA projection (Zwicker et al. 2001) and front-to-back
compositing of depth-sorted splats (Kerbl et al. 2023), with gsplat's constants. Every sum has a
fixed order, so results are bitwise repeatable for any number of threads.

A Gaussian at pixel x is alpha(x) = opacity exp(-sigma), sigma = (a dx^2 + 2 b dx dy + c dy^2) / 2.
Completing the square in x, with u = dx + (b/a) dy, gives log2 alpha = row(dy) - h u^2: no
cancellation, one multiply-add a pixel, and a cheap test whether a row of a block is touched at all.

The image is cut into tiles of `TILE_W` x `TILE_H` pixels, each composited by one thread. Inside a
tile a splat is drawn in blocks of `LANES` columns that start at the splat's own first column; the
inner loops have this constant length and one base address, which lets LLVM turn them into SIMD
code without checks. Tile buffers have `LANES` spare columns for blocks that stick out.
"""

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

numba.config.THREADING_LAYER = "workqueue"  # the default layers kill forked children

f32 = np.float32
index = np.uint64  # signed indices would be tested for wrap-around in the inner loops

NEAR = 0.01
EPS2D = 0.3  # px^2, added to the diagonal of the projected covariance
FRUSTUM_MARGIN = 0.3  # of tan(fov / 2): how far outside the image the Jacobian still follows
ALPHA_MIN = f32(1 / 255)
ALPHA_MAX = f32(0.999)
T_STOP = f32(1e-4)  # a pixel is done before its transmittance falls to this
LOG2_E = float(np.log2(np.e))
LOG2_ALPHA_MIN = f32(np.log2(1 / 255) - 1e-3)  # with slack: the exact test is on alpha

TILE_W, TILE_H, LANES = 64, 16, 8
STRIDE = index(TILE_W + LANES)
FIELDS = 6  # rows of STRIDE floats that a tile buffer has for each pixel row
ACC = index(6 * LANES)  # floats before the tile buffer's first row: the sums of one block

FASTMATH = {"reassoc", "nsz", "contract", "nnan", "ninf"}
SPLAT = 12  # floats of a packed splat: mx my b/a h c' log2(opacity) r g b, extent x y, pad
MOMENTS = 9  # sums a splat gets from a tile: s, s dx, s dy, s dx^2, s dx dy, s dy^2, r, g, b


@njit(forceinline=True, fastmath=FASTMATH)
def _exp2(x):
    """2^x in float32, for x > -126; minimax polynomial, relative error 1.6e-7."""
    whole = np.floor(x + f32(0.5))
    x = x - whole
    y = f32(0.00132647) * x + f32(0.00967151)
    y = y * x + f32(0.05550734)
    y = y * x + f32(0.24022242)
    y = y * x + f32(0.69314698)
    y = y * x + f32(1.0)
    exponent = np.int32(whole) << 23
    return np.int32(np.int64(f32(y).view(np.int32)) + exponent).view(f32)


@njit(forceinline=True, fastmath=FASTMATH)
def _rotation(quat):
    """Rotation matrix entries (row-major) and norm of a wxyz quaternion."""
    norm = np.sqrt(quat[0] ** 2.0 + quat[1] ** 2.0 + quat[2] ** 2.0 + quat[3] ** 2.0)
    w, x, y, z = quat[0] / norm, quat[1] / norm, quat[2] / norm, quat[3] / norm
    rotation = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return rotation, norm


@njit(forceinline=True, fastmath=FASTMATH)
def _to_camera(view, mean):
    x = view[0, 0] * mean[0] + view[0, 1] * mean[1] + view[0, 2] * mean[2] + view[0, 3]
    y = view[1, 0] * mean[0] + view[1, 1] * mean[1] + view[1, 2] * mean[2] + view[1, 3]
    z = view[2, 0] * mean[0] + view[2, 1] * mean[1] + view[2, 2] * mean[2] + view[2, 3]
    return x, y, z


@njit(forceinline=True, fastmath=FASTMATH)
def _frustum(k, width, height):
    """Limits of x/z and y/z for the Jacobian: (x low, x high, y low, y high)."""
    margin_x = FRUSTUM_MARGIN * 0.5 * width / k[0, 0]
    margin_y = FRUSTUM_MARGIN * 0.5 * height / k[1, 1]
    return (
        -k[0, 2] / k[0, 0] - margin_x,
        (width - k[0, 2]) / k[0, 0] + margin_x,
        -k[1, 2] / k[1, 1] - margin_y,
        (height - k[1, 2]) / k[1, 1] + margin_y,
    )


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _project(means, quats, scales, opacities, views, ks, width, height):
    n_batch, n = means.shape[:2]
    means2d = np.zeros((n_batch, n, 2), f32)
    conics = np.zeros((n_batch, n, 3), f32)
    depths = np.zeros((n_batch, n), f32)
    extents = np.zeros((n_batch, n, 2), f32)
    for i in prange(n_batch * n):
        b, g = i // n, i % n
        view, k = views[b], ks[b]
        x, y, z = _to_camera(view, means[b, g])
        opacity = float(opacities[b, g])
        if z < NEAR or opacity < ALPHA_MIN:
            continue
        x_low, x_high, y_low, y_high = _frustum(k, width, height)
        jx, jy = k[0, 0] / z, k[1, 1] / z
        jxz = -jx * min(max(x / z, x_low), x_high)
        jyz = -jy * min(max(y / z, y_low), y_high)
        rotation, _ = _rotation(quats[b, g])
        cov_xx, cov_xy, cov_yy = EPS2D, 0.0, EPS2D
        for j in range(3):
            c0 = rotation[0][j] * scales[b, g, j]
            c1 = rotation[1][j] * scales[b, g, j]
            c2 = rotation[2][j] * scales[b, g, j]
            depth = view[2, 0] * c0 + view[2, 1] * c1 + view[2, 2] * c2
            px = jx * (view[0, 0] * c0 + view[0, 1] * c1 + view[0, 2] * c2) + jxz * depth
            py = jy * (view[1, 0] * c0 + view[1, 1] * c1 + view[1, 2] * c2) + jyz * depth
            cov_xx += px * px
            cov_xy += px * py
            cov_yy += py * py
        det = cov_xx * cov_yy - cov_xy * cov_xy
        reach = np.sqrt(max(2.0 * np.log(opacity / ALPHA_MIN), 0.0))
        extent_x, extent_y = reach * np.sqrt(cov_xx), reach * np.sqrt(cov_yy)
        mx, my = jx * x + k[0, 2], jy * y + k[1, 2]
        radius_x, radius_y = np.ceil(extent_x), np.ceil(extent_y)
        if (
            det <= 0.0
            or mx + radius_x <= 0.0
            or mx - radius_x >= width
            or my + radius_y <= 0.0
            or my - radius_y >= height
        ):
            continue
        means2d[b, g, 0], means2d[b, g, 1] = mx, my
        conics[b, g, 0], conics[b, g, 1], conics[b, g, 2] = (
            cov_yy / det,
            -cov_xy / det,
            cov_xx / det,
        )
        depths[b, g] = z
        extents[b, g, 0], extents[b, g, 1] = extent_x, extent_y
    return means2d, conics, depths, extents


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _project_backward(
    means, quats, scales, views, ks, width, height, extents, conics, v_means2d, v_conics
):
    v_means = np.zeros_like(means)
    v_quats = np.zeros_like(quats)
    v_scales = np.zeros_like(scales)
    n_batch, n = means.shape[:2]
    for i in prange(n_batch * n):
        b, g = i // n, i % n
        if extents[b, g, 0] <= 0:
            continue
        view, k = views[b], ks[b]
        x, y, z = _to_camera(view, means[b, g])
        x_low, x_high, y_low, y_high = _frustum(k, width, height)
        jx, jy = k[0, 0] / z, k[1, 1] / z
        tx, ty = min(max(x / z, x_low), x_high), min(max(y / z, y_low), y_high)
        jxz, jyz = -jx * tx, -jy * ty

        # conic = inverse(cov): v_cov = -conic v_conic conic, symmetric
        ca, cb, cc = float(conics[b, g, 0]), float(conics[b, g, 1]), float(conics[b, g, 2])
        va, vb, vc = float(v_conics[b, g, 0]), 0.5 * v_conics[b, g, 1], float(v_conics[b, g, 2])
        ma, mb = ca * va + cb * vb, ca * vb + cb * vc
        mc, md = cb * va + cc * vb, cb * vb + cc * vc
        v_xx, v_xy, v_yy = -(ma * ca + mb * cb), -(ma * cb + mb * cc), -(mc * cb + md * cc)

        # cov = P P^T, P = J W (R S): v_P = 2 v_cov P
        rotation, norm = _rotation(quats[b, g])
        v_jx = v_jy = v_jxz = v_jyz = 0.0
        v_r = np.empty((3, 3))
        for j in range(3):
            c0 = rotation[0][j] * scales[b, g, j]
            c1 = rotation[1][j] * scales[b, g, j]
            c2 = rotation[2][j] * scales[b, g, j]
            qx = view[0, 0] * c0 + view[0, 1] * c1 + view[0, 2] * c2
            qy = view[1, 0] * c0 + view[1, 1] * c1 + view[1, 2] * c2
            qz = view[2, 0] * c0 + view[2, 1] * c1 + view[2, 2] * c2
            px, py = jx * qx + jxz * qz, jy * qy + jyz * qz
            v_px = 2.0 * (v_xx * px + v_xy * py)
            v_py = 2.0 * (v_xy * px + v_yy * py)
            v_jx += v_px * qx
            v_jy += v_py * qy
            v_jxz += v_px * qz
            v_jyz += v_py * qz
            v_qx, v_qy, v_qz = jx * v_px, jy * v_py, jxz * v_px + jyz * v_py
            v_scale = 0.0
            for row in range(3):
                v_c = view[0, row] * v_qx + view[1, row] * v_qy + view[2, row] * v_qz
                v_scale += v_c * rotation[row][j]
                v_r[row, j] = v_c * scales[b, g, j]
            v_scales[b, g, j] = v_scale

        w, qx, qy, qz = (
            quats[b, g, 0] / norm,
            quats[b, g, 1] / norm,
            quats[b, g, 2] / norm,
            quats[b, g, 3] / norm,
        )
        v_w = 2.0 * (
            qx * (v_r[2, 1] - v_r[1, 2]) + qy * (v_r[0, 2] - v_r[2, 0]) + qz * (v_r[1, 0] - v_r[0, 1])
        )
        v_qx = 2.0 * (
            -2.0 * qx * (v_r[1, 1] + v_r[2, 2])
            + qy * (v_r[0, 1] + v_r[1, 0])
            + qz * (v_r[0, 2] + v_r[2, 0])
            + w * (v_r[2, 1] - v_r[1, 2])
        )
        v_qy = 2.0 * (
            qx * (v_r[0, 1] + v_r[1, 0])
            - 2.0 * qy * (v_r[0, 0] + v_r[2, 2])
            + qz * (v_r[1, 2] + v_r[2, 1])
            + w * (v_r[0, 2] - v_r[2, 0])
        )
        v_qz = 2.0 * (
            qx * (v_r[0, 2] + v_r[2, 0])
            + qy * (v_r[1, 2] + v_r[2, 1])
            - 2.0 * qz * (v_r[0, 0] + v_r[1, 1])
            + w * (v_r[1, 0] - v_r[0, 1])
        )
        radial = w * v_w + qx * v_qx + qy * v_qy + qz * v_qz
        v_quats[b, g, 0] = (v_w - w * radial) / norm
        v_quats[b, g, 1] = (v_qx - qx * radial) / norm
        v_quats[b, g, 2] = (v_qy - qy * radial) / norm
        v_quats[b, g, 3] = (v_qz - qz * radial) / norm

        # jx = fx / z, jxz = -jx tx; tx = x / z where it is not clamped
        v_mx, v_my = float(v_means2d[b, g, 0]), float(v_means2d[b, g, 1])
        v_x, v_y = jx * v_mx, jy * v_my
        v_z = -(v_x * x + v_y * y) / z
        v_z -= (v_jx * jx + v_jy * jy + v_jxz * jxz + v_jyz * jyz) / z
        if x_low <= x / z <= x_high:
            v_tx = -v_jxz * jx / z
            v_x += v_tx
            v_z -= v_tx * tx
        if y_low <= y / z <= y_high:
            v_ty = -v_jyz * jy / z
            v_y += v_ty
            v_z -= v_ty * ty
        for column in range(3):
            v_means[b, g, column] = (
                view[0, column] * v_x + view[1, column] * v_y + view[2, column] * v_z
            )
    return v_means, v_quats, v_scales


@njit(forceinline=True, fastmath=FASTMATH)
def _depth_order(depths, extents):
    """Indices of the visible Gaussians, near to far, equal depths in order of index: radix sort."""
    visible = np.flatnonzero(extents[:, 0] > 0).astype(np.int32)
    keys = depths[visible].view(np.uint32)  # positive floats sort like their bits
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for key in keys:
            starts[((key >> shift) & 2047) + 1] += 1
        starts = np.cumsum(starts)
        sorted_keys, sorted_visible = np.empty_like(keys), np.empty_like(visible)
        for i in range(len(keys)):
            digit = (keys[i] >> shift) & 2047
            sorted_keys[starts[digit]] = keys[i]
            sorted_visible[starts[digit]] = visible[i]
            starts[digit] += 1
        keys, visible = sorted_keys, sorted_visible
    return visible


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _bin(means2d, conics, colors, opacities, depths, extents, width, height):
    """Sort splats by depth, pack them, and list for every tile the splats that touch it.

    Returns order [B,G] (index of the splat at a rank, -1 beyond the visible ones), splats
    [B,G,SPLAT] by rank, slots [B,G+1] (first row of a rank in the table of tile sums), tile_starts
    [B*tiles+1] into entries [N,2] = (rank, row in the table).
    """
    n_batch, n = depths.shape
    across, down = (width + TILE_W - 1) // TILE_W, (height + TILE_H - 1) // TILE_H
    order = np.full((n_batch, n), -1, np.int32)
    splats = np.zeros((n_batch, n, SPLAT), f32)
    spans = np.zeros((n_batch, n, 4), np.int32)
    slots = np.zeros((n_batch, n + 1), np.int64)
    counts = np.zeros((n_batch, across * down), np.int64)
    for b in prange(n_batch):
        visible = _depth_order(depths[b], extents[b])
        for rank in range(len(visible)):
            g = visible[rank]
            order[b, rank] = g
            ca, cb, cc = float(conics[b, g, 0]), float(conics[b, g, 1]), float(conics[b, g, 2])
            mx, my = means2d[b, g, 0], means2d[b, g, 1]
            splat = splats[b, rank]
            splat[0], splat[1], splat[2] = mx, my, cb / ca
            splat[3] = 0.5 * LOG2_E * ca
            splat[4] = 0.5 * LOG2_E * (cc - cb * cb / ca)
            splat[5] = LOG2_E * np.log(float(opacities[b, g]))
            splat[6], splat[7], splat[8] = colors[b, g, 0], colors[b, g, 1], colors[b, g, 2]
            extent_x, extent_y = extents[b, g, 0] + f32(0.01), extents[b, g, 1] + f32(0.01)
            splat[9], splat[10] = extent_x, extent_y
            left = max(0, int(np.floor((mx - extent_x) / TILE_W)))
            right = min(across - 1, int(np.floor((mx + extent_x) / TILE_W)))
            top = max(0, int(np.floor((my - extent_y) / TILE_H)))
            bottom = min(down - 1, int(np.floor((my + extent_y) / TILE_H)))
            span = spans[b, rank]
            span[0], span[1], span[2], span[3] = left, right, top, bottom
            for ty in range(top, bottom + 1):
                for tx in range(left, right + 1):
                    counts[b, ty * across + tx] += 1
            slots[b, rank + 1] = max(0, right - left + 1) * max(0, bottom - top + 1)
        for rank in range(len(visible), n):
            slots[b, rank + 1] = 0
    flat = slots.reshape(-1)
    for i in range(1, len(flat)):
        flat[i] += flat[i - 1]
    tile_starts = np.zeros(n_batch * across * down + 1, np.int64)
    tile_starts[1:] = np.cumsum(counts.reshape(-1))
    entries = np.empty((tile_starts[-1], 2), np.int32)
    for b in prange(n_batch):
        cursor = tile_starts[b * across * down : (b + 1) * across * down].copy()
        for rank in range(n):
            if order[b, rank] < 0:
                break
            slot = slots[b, rank]
            span = spans[b, rank]
            for ty in range(span[2], span[3] + 1):
                for tx in range(span[0], span[1] + 1):
                    at = cursor[ty * across + tx]
                    entries[at, 0] = rank
                    entries[at, 1] = slot
                    cursor[ty * across + tx] += 1
                    slot += 1
    return order, splats, slots, tile_starts, entries


@njit(forceinline=True, fastmath=FASTMATH)
def _pixels(center, extent, start, size):
    """First and last pixel of start .. start + size - 1 whose centre is within center +- extent."""
    first = max(0, int(np.ceil(center - extent - f32(0.5))) - start)
    last = min(size - 1, int(np.floor(center + extent - f32(0.5))) - start)
    return first, last


@njit(forceinline=True, fastmath=FASTMATH)
def _touches(u, h, row):
    """Whether a row of a block, first column at offset u, reaches the least visible alpha."""
    nearest = max(u, min(f32(0), u + f32(LANES - 1)))
    return row - h * nearest * nearest >= LOG2_ALPHA_MIN


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _composite(splats, tile_starts, entries, n_tasks, width, height):
    """rgb [B,H,W,3], alpha [B,H,W,1], and for the gradient: T [B,H,W], last entry [B,H,W]."""
    n_batch = splats.shape[0]
    across, down = (width + TILE_W - 1) // TILE_W, (height + TILE_H - 1) // TILE_H
    rgb = np.empty((n_batch, height, width, 3), f32)
    alpha = np.empty((n_batch, height, width, 1), f32)
    transmittance = np.empty((n_batch, height, width), f32)
    last = np.empty((n_batch, height, width), f32)
    pitch = STRIDE * index(FIELDS)
    for task in prange(n_tasks):
        tile = np.empty(TILE_H * FIELDS * (TILE_W + LANES), f32)
        for t in range(task, n_batch * across * down, n_tasks):
            b = t // (across * down)
            y0, x0 = (t // across) % down * TILE_H, t % across * TILE_W
            rows, columns = min(TILE_H, height - y0), min(TILE_W, width - x0)
            for y in range(rows):
                base = index(y) * pitch
                for i in range(STRIDE):
                    tile[base + i] = 0
                    tile[base + STRIDE + i] = 0
                    tile[base + STRIDE * index(2) + i] = 0
                    tile[base + STRIDE * index(3) + i] = 1
                    tile[base + STRIDE * index(4) + i] = -1
            start = tile_starts[t]
            for entry in range(start, tile_starts[t + 1]):
                splat = splats[b, entries[entry, 0]]
                mx, my, slant, h, curve, peak = (
                    splat[0],
                    splat[1],
                    splat[2],
                    splat[3],
                    splat[4],
                    splat[5],
                )
                red, green, blue = splat[6], splat[7], splat[8]
                order = f32(entry - start)
                left, right = _pixels(mx, splat[9], x0, columns)
                top, bottom = _pixels(my, splat[10], y0, rows)
                for x in range(left, right + 1, LANES):
                    for y in range(top, bottom + 1):
                        dy = f32(y0 + y) + f32(0.5) - my
                        u0 = f32(x0 + x) + f32(0.5) - mx + slant * dy
                        row = peak - curve * dy * dy
                        if not _touches(u0, h, row):
                            continue
                        base = index(y) * pitch + index(x)
                        for lane in range(index(LANES)):
                            i = base + lane
                            u = u0 + f32(lane)
                            a = min(_exp2(max(row - h * u * u, f32(-64))), ALPHA_MAX)
                            a = a if a >= ALPHA_MIN else f32(0)
                            through = tile[i + STRIDE * index(3)]
                            after = through * (f32(1) - a)
                            live = after > T_STOP
                            weight = a * through if live else f32(0)
                            tile[i] += weight * red
                            tile[i + STRIDE] += weight * green
                            tile[i + STRIDE * index(2)] += weight * blue
                            # a pixel that is done keeps its transmittance, negated
                            tile[i + STRIDE * index(3)] = after if live else -abs(through)
                            previous = tile[i + STRIDE * index(4)]
                            tile[i + STRIDE * index(4)] = order if live else previous
            for y in range(rows):
                base = index(y) * pitch
                for x in range(columns):
                    i = base + index(x)
                    rgb[b, y0 + y, x0 + x, 0] = tile[i]
                    rgb[b, y0 + y, x0 + x, 1] = tile[i + STRIDE]
                    rgb[b, y0 + y, x0 + x, 2] = tile[i + STRIDE * index(2)]
                    through = abs(tile[i + STRIDE * index(3)])
                    alpha[b, y0 + y, x0 + x, 0] = f32(1) - through
                    transmittance[b, y0 + y, x0 + x] = through
                    last[b, y0 + y, x0 + x] = tile[i + STRIDE * index(4)]
    return rgb, alpha, transmittance, last


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _composite_backward(
    splats, tile_starts, entries, transmittance, last, v_rgb, v_alpha, n_tasks
):
    """Sums [N,MOMENTS] of every (splat, tile) pair, splats walked far to near."""
    n_batch, height, width = transmittance.shape
    across, down = (width + TILE_W - 1) // TILE_W, (height + TILE_H - 1) // TILE_H
    sums = np.empty((len(entries), MOMENTS), f32)
    pitch = STRIDE * index(FIELDS)
    for task in prange(n_tasks):
        acc = np.zeros(6 * LANES, f32)
        tile = np.zeros(TILE_H * FIELDS * (TILE_W + LANES), f32)
        for t in range(task, n_batch * across * down, n_tasks):
            b = t // (across * down)
            y0, x0 = (t // across) % down * TILE_H, t % across * TILE_W
            rows, columns = min(TILE_H, height - y0), min(TILE_W, width - x0)
            for y in range(rows):
                base = index(y) * pitch
                for i in range(STRIDE):
                    tile[base + STRIDE * index(5) + i] = -1
                for x in range(columns):
                    i = base + index(x)
                    through = transmittance[b, y0 + y, x0 + x]
                    tile[i] = v_rgb[b, y0 + y, x0 + x, 0]
                    tile[i + STRIDE] = v_rgb[b, y0 + y, x0 + x, 1]
                    tile[i + STRIDE * index(2)] = v_rgb[b, y0 + y, x0 + x, 2]
                    tile[i + STRIDE * index(3)] = through
                    # what lies behind, times the gradient of what is seen: starts with 1 - alpha
                    tile[i + STRIDE * index(4)] = -through * v_alpha[b, y0 + y, x0 + x, 0]
                    tile[i + STRIDE * index(5)] = last[b, y0 + y, x0 + x]
            start = tile_starts[t]
            for entry in range(tile_starts[t + 1] - 1, start - 1, -1):
                splat = splats[b, entries[entry, 0]]
                mx, my, slant, h, curve, peak = (
                    splat[0],
                    splat[1],
                    splat[2],
                    splat[3],
                    splat[4],
                    splat[5],
                )
                red, green, blue = splat[6], splat[7], splat[8]
                order = f32(entry - start)
                left, right = _pixels(mx, splat[9], x0, columns)
                top, bottom = _pixels(my, splat[10], y0, rows)
                s_1 = s_x = s_y = s_xx = s_xy = s_yy = s_r = s_g = s_b = f32(0)
                for x in range(left, right + 1, LANES):
                    for i in range(6 * LANES):
                        acc[i] = 0
                    for y in range(top, bottom + 1):
                        dy = f32(y0 + y) + f32(0.5) - my
                        u0 = f32(x0 + x) + f32(0.5) - mx + slant * dy
                        row = peak - curve * dy * dy
                        if not _touches(u0, h, row):
                            continue
                        base = index(y) * pitch + index(x)
                        for lane in range(index(LANES)):
                            i = base + lane
                            u = u0 + f32(lane)
                            raw = _exp2(max(row - h * u * u, f32(-64)))
                            a = min(raw, ALPHA_MAX)
                            active = (a >= ALPHA_MIN) & (order <= tile[i + STRIDE * index(5)])
                            a = a if active else f32(0)
                            inverse = f32(1) / (f32(1) - a)
                            through = tile[i + STRIDE * index(3)] * inverse
                            weight = a * through
                            v_r, v_g, v_b = (
                                tile[i],
                                tile[i + STRIDE],
                                tile[i + STRIDE * index(2)],
                            )
                            seen = red * v_r + green * v_g + blue * v_b
                            behind = tile[i + STRIDE * index(4)]
                            v_a = seen * through - behind * inverse
                            s = -a * v_a if raw <= ALPHA_MAX else f32(0)
                            tile[i + STRIDE * index(3)] = through
                            tile[i + STRIDE * index(4)] = behind + weight * seen
                            acc[lane] += s
                            acc[lane + index(LANES)] += s * dy
                            acc[lane + index(2 * LANES)] += s * dy * dy
                            acc[lane + index(3 * LANES)] += weight * v_r
                            acc[lane + index(4 * LANES)] += weight * v_g
                            acc[lane + index(5 * LANES)] += weight * v_b
                    for lane in range(index(LANES)):
                        dx = f32(x0 + x) + f32(0.5) - mx + f32(lane)
                        s_1 += acc[lane]
                        s_x += acc[lane] * dx
                        s_xx += acc[lane] * dx * dx
                        s_y += acc[lane + index(LANES)]
                        s_xy += acc[lane + index(LANES)] * dx
                        s_yy += acc[lane + index(2 * LANES)]
                        s_r += acc[lane + index(3 * LANES)]
                        s_g += acc[lane + index(4 * LANES)]
                        s_b += acc[lane + index(5 * LANES)]
                out = sums[entries[entry, 1]]
                out[0], out[1], out[2], out[3], out[4], out[5] = s_1, s_x, s_y, s_xx, s_xy, s_yy
                out[6], out[7], out[8] = s_r, s_g, s_b
    return sums


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _gather(order, slots, sums, conics, opacities):
    """Gradients of means2d, conics, opacities and colors from the tile sums, in tile order."""
    n_batch, n = order.shape
    v_means2d = np.zeros((n_batch, n, 2), f32)
    v_conics = np.zeros((n_batch, n, 3), f32)
    v_opacities = np.zeros((n_batch, n), f32)
    v_colors = np.zeros((n_batch, n, 3), f32)
    for i in prange(n_batch * n):
        b, rank = i // n, i % n
        g = order[b, rank]
        if g < 0:
            continue
        total = np.zeros(MOMENTS, f32)
        for slot in range(slots[b, rank], slots[b, rank + 1]):
            for m in range(MOMENTS):
                total[m] += sums[slot, m]
        a, ab, c = conics[b, g]
        v_means2d[b, g, 0] = -(a * total[1] + ab * total[2])
        v_means2d[b, g, 1] = -(ab * total[1] + c * total[2])
        v_conics[b, g, 0] = f32(0.5) * total[3]
        v_conics[b, g, 1] = total[4]
        v_conics[b, g, 2] = f32(0.5) * total[5]
        v_opacities[b, g] = -total[0] / opacities[b, g]
        v_colors[b, g] = total[6:9]
    return v_means2d, v_conics, v_opacities, v_colors


def _threads() -> int:
    """Let numba use as many threads as torch does, and return that number."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, width, height):
        _threads()
        inputs = _arrays(means, quats, scales, opacities, viewmats, Ks)
        projected = _project(*inputs, width, height)
        means2d, conics, depths, extents = (torch.from_numpy(array) for array in projected)
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, extents, conics)
        ctx.size = (width, height)
        ctx.mark_non_differentiable(depths, extents)
        return means2d, conics, depths, extents

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v_means2d, v_conics, *_):
        _threads()
        *inputs, extents, conics = _arrays(*ctx.saved_tensors)
        gradients = _project_backward(
            *inputs, *ctx.size, extents, conics, *_arrays(v_means2d, v_conics)
        )
        return *(torch.from_numpy(array) for array in gradients), *(None,) * 5


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, colors, opacities, depths, extents, width, height):
        threads = _threads()
        arrays = _arrays(means2d, conics, colors, opacities, depths, extents)
        order, splats, slots, tile_starts, entries = _bin(*arrays, width, height)
        rgb, alpha, transmittance, last = _composite(
            splats, tile_starts, entries, threads, width, height
        )
        ctx.save_for_backward(conics, opacities)
        ctx.tiles = (splats, tile_starts, entries, transmittance, last)
        ctx.table = (order, slots)
        return torch.from_numpy(rgb), torch.from_numpy(alpha)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v_rgb, v_alpha):
        threads = _threads()
        sums = _composite_backward(*ctx.tiles, *_arrays(v_rgb, v_alpha), threads)
        v_means2d, v_conics, v_opacities, v_colors = (
            torch.from_numpy(array)
            for array in _gather(*ctx.table, sums, *_arrays(*ctx.saved_tensors))
        )
        return v_means2d, v_conics, v_colors, v_opacities, *(None,) * 4


def rasterize_cpu(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rgb [B,H,W,3], alpha [B,H,W,1], means2d [B,G,2], radii [B,G]; see `rasterize.rasterize`."""
    means2d, conics, depths, extents = _Project.apply(
        means, quats, scales, opacities, viewmats, Ks, width, height
    )
    rgb, alpha = _Composite.apply(
        means2d, conics, colors, opacities, depths, extents, width, height
    )
    return rgb, alpha, means2d, extents.amax(dim=-1).ceil().int()
