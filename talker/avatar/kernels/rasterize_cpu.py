"""Differentiable Gaussian rasterizer for the CPU: numba kernels with hand-written gradients.

It renders the same image as gsplat 1.5.3 ("classic" mode): EWA projection (Zwicker et al. 2001) and
front-to-back compositing of depth-sorted splats (Kerbl et al. 2023), with gsplat's constants. Every
sum has a fixed order, so results are bitwise repeatable for any number of threads.

A Gaussian at pixel x is alpha(x) = opacity exp(-sigma), sigma = (a dx^2 + 2 b dx dy + c dy^2) / 2.
Completing the square in x, with u = dx + (b/a) dy, gives log2 alpha = row(dy) - h u^2: this avoids
cancellation, needs one multiply-add per pixel, and allows a cheap test of whether a splat touches a
row of a block at all.

The image is divided into tiles of `TILE_W` x `TILE_H` pixels, each composited by one thread. A row
of a tile is divided into blocks of `LANES` pixels; the inner loops have this constant length and
constant strides, which lets LLVM turn them into SIMD code. Blocks are skipped if all of their rays
ended in front of the splat, which is so for half of the blocks of a typical avatar.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from talker.avatar.kernels.jit import inlined, kernel, run

f32 = np.float32
index = np.uint64  # signed indices would be tested for wrap-around in the inner loops

NEAR = 0.01
EPS2D = 0.3  # px^2, added to the diagonal of the projected covariance
FRUSTUM_MARGIN = 0.3  # margin of x/z around the image in the Jacobian, in units of tan(fov / 2)
ALPHA_MIN = f32(1 / 255)
ALPHA_MAX = f32(0.999)
T_STOP = f32(1e-4)  # a pixel ends before its transmittance falls below this
LOG2_E = float(np.log2(np.e))
LOG2_ALPHA_MIN = f32(np.log2(1 / 255) - 1e-3)  # slightly lower, because the exact test is on alpha

TILE_W, TILE_H, LANES = 64, 32, 16
WIDE = index(LANES)
BLOCKS = TILE_W // LANES
PITCH = index(6 * TILE_W)  # floats per pixel row: six fields of TILE_W columns
# forward:  accumulated red, green and blue, transmittance, unused, last entry drawn
# backward: gradients of red, green and blue, transmittance, light from behind, last entry drawn
RED, GREEN, BLUE, THROUGH, BEHIND, LAST = (index(i * TILE_W) for i in range(6))

CHECK_EVERY = 32  # splats between two searches for blocks whose rays have all ended

SPLAT = 12  # floats per packed splat: x, y, b/a, h, curve, peak, red, green, blue, extent x, y, 0
MOMENTS = 9  # what a tile adds to a splat: sums of s (1, dx, dy, dx^2, dx dy, dy^2), r, g, b

# "nnan" is left out, so that NaN compares as NaN and such a Gaussian is not visible
precise = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
precise_inlined = njit(error_model="numpy", fastmath={"contract"}, forceinline=True)


@inlined
def _exp2(x):
    """Return 2^x in float32 for x > -126, by a minimax polynomial with relative error 1.6e-7."""
    whole = np.floor(x + f32(0.5))
    x = x - whole
    y = f32(0.00132647) * x + f32(0.00967151)
    y = y * x + f32(0.05550734)
    y = y * x + f32(0.24022242)
    y = y * x + f32(0.69314698)
    y = y * x + f32(1.0)
    exponent = np.int32(whole) << 23
    return np.int32(np.int64(f32(y).view(np.int32)) + exponent).view(f32)


@precise_inlined
def _rotation(quat):
    """Return the rotation matrix and the norm of a quaternion wxyz."""
    norm = np.sqrt(quat[0] ** 2.0 + quat[1] ** 2.0 + quat[2] ** 2.0 + quat[3] ** 2.0)
    w, x, y, z = quat[0] / norm, quat[1] / norm, quat[2] / norm, quat[3] / norm
    rotation = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return rotation, norm


@precise_inlined
def _rotate(view, x, y, z):
    return (
        view[0, 0] * x + view[0, 1] * y + view[0, 2] * z,
        view[1, 0] * x + view[1, 1] * y + view[1, 2] * z,
        view[2, 0] * x + view[2, 1] * y + view[2, 2] * z,
    )


@precise_inlined
def _clamped(ratio, center, focal, size):
    """Return x/z clamped to the image and a margin, for the Jacobian, and whether it was inside."""
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    low, high = -center / focal - margin, (size - center) / focal + margin
    return min(max(ratio, low), high), low <= ratio <= high


@precise
def _project(
    task,
    n_tasks,
    means,
    quats,
    scales,
    opacities,
    views,
    ks,
    width,
    height,
    means2d,
    conics,
    depths,
    extents,
    radii,
):
    n_batch, n = opacities.shape
    for i in range(task * n_batch * n // n_tasks, (task + 1) * n_batch * n // n_tasks):
        b, g = i // n, i % n
        view, k = views[b], ks[b]
        x, y, z = _rotate(view, means[b, g, 0], means[b, g, 1], means[b, g, 2])
        x, y, z = x + view[0, 3], y + view[1, 3], z + view[2, 3]
        opacity = float(opacities[b, g])
        if not (z >= NEAR and opacity >= ALPHA_MIN):
            continue
        jx, jy = float(k[0, 0]) / z, float(k[1, 1]) / z
        tx, _ = _clamped(x / z, k[0, 2], k[0, 0], width)
        ty, _ = _clamped(y / z, k[1, 2], k[1, 1], height)
        rotation, _ = _rotation(quats[b, g])
        xx, xy, yy = EPS2D, 0.0, EPS2D
        for j in range(3):
            scale = float(scales[b, g, j])
            qx, qy, qz = _rotate(view, rotation[0][j], rotation[1][j], rotation[2][j])
            px, py = scale * jx * (qx - tx * qz), scale * jy * (qy - ty * qz)
            xx += px * px
            xy += px * py
            yy += py * py
        det = xx * yy - xy * xy
        reach = np.sqrt(max(2.0 * np.log(opacity / ALPHA_MIN), 0.0))
        extent_x, extent_y = reach * np.sqrt(xx), reach * np.sqrt(yy)
        radius_x, radius_y = np.ceil(extent_x), np.ceil(extent_y)
        mx, my = jx * x + k[0, 2], jy * y + k[1, 2]
        inside_x = mx + radius_x > 0.0 and mx - radius_x < width
        inside_y = my + radius_y > 0.0 and my - radius_y < height
        if not (det > 0.0 and inside_x and inside_y):
            continue
        means2d[b, g, 0], means2d[b, g, 1] = mx, my
        conics[b, g, 0], conics[b, g, 1], conics[b, g, 2] = yy / det, -xy / det, xx / det
        depths[b, g] = z
        extents[b, g, 0], extents[b, g, 1] = extent_x, extent_y
        radii[b, g] = max(radius_x, radius_y)


@precise
def _project_backward(
    task,
    n_tasks,
    means,
    quats,
    scales,
    views,
    ks,
    conics,
    radii,
    width,
    height,
    v_means2d,
    v_conics,
    v_means,
    v_quats,
    v_scales,
):
    n_batch, n = radii.shape
    v_r = np.empty((3, 3))
    for i in range(task * n_batch * n // n_tasks, (task + 1) * n_batch * n // n_tasks):
        b, g = i // n, i % n
        if radii[b, g] == 0:
            continue
        view, k = views[b], ks[b]
        x, y, z = _rotate(view, means[b, g, 0], means[b, g, 1], means[b, g, 2])
        x, y, z = x + view[0, 3], y + view[1, 3], z + view[2, 3]
        jx, jy = float(k[0, 0]) / z, float(k[1, 1]) / z
        tx, free_x = _clamped(x / z, k[0, 2], k[0, 0], width)
        ty, free_y = _clamped(y / z, k[1, 2], k[1, 1], height)

        # conic = inverse(cov), so v_cov = -conic v_conic conic; a, b, c: the symmetric entries
        ca, cb, cc = float(conics[b, g, 0]), float(conics[b, g, 1]), float(conics[b, g, 2])
        va, vb, vc = float(v_conics[b, g, 0]), 0.5 * v_conics[b, g, 1], float(v_conics[b, g, 2])
        v_xx = -(ca * ca * va + 2 * ca * cb * vb + cb * cb * vc)
        v_xy = -(ca * cb * va + (ca * cc + cb * cb) * vb + cb * cc * vc)
        v_yy = -(cb * cb * va + 2 * cb * cc * vb + cc * cc * vc)

        # cov = P P^T + eps, P = J view R S, with J = [jx 0 -jx tx; 0 jy -jy ty]
        rotation, norm = _rotation(quats[b, g])
        v_jx = v_jy = v_tx = v_ty = 0.0
        for j in range(3):
            scale = float(scales[b, g, j])
            qx, qy, qz = _rotate(view, rotation[0][j], rotation[1][j], rotation[2][j])
            px, py = jx * (qx - tx * qz), jy * (qy - ty * qz)
            v_px = 2.0 * scale * (v_xx * px + v_xy * py)
            v_py = 2.0 * scale * (v_xy * px + v_yy * py)
            v_scales[b, g, j] = v_px * px + v_py * py
            v_px, v_py = scale * v_px, scale * v_py
            v_jx += v_px * px / jx
            v_jy += v_py * py / jy
            v_tx -= v_px * jx * qz
            v_ty -= v_py * jy * qz
            v_qx, v_qy = v_px * jx, v_py * jy
            v_qz = -(v_qx * tx + v_qy * ty)
            for row in range(3):
                v_r[row, j] = view[0, row] * v_qx + view[1, row] * v_qy + view[2, row] * v_qz

        qw, qx = quats[b, g, 0] / norm, quats[b, g, 1] / norm
        qy, qz = quats[b, g, 2] / norm, quats[b, g, 3] / norm
        xy, yx = v_r[0, 1] + v_r[1, 0], v_r[1, 0] - v_r[0, 1]
        xz, zx = v_r[0, 2] + v_r[2, 0], v_r[0, 2] - v_r[2, 0]
        yz, zy = v_r[1, 2] + v_r[2, 1], v_r[2, 1] - v_r[1, 2]
        v_qw = 2.0 * (qx * zy + qy * zx + qz * yx)
        v_qx = 2.0 * (qw * zy - 2.0 * qx * (v_r[1, 1] + v_r[2, 2]) + qy * xy + qz * xz)
        v_qy = 2.0 * (qw * zx + qx * xy - 2.0 * qy * (v_r[0, 0] + v_r[2, 2]) + qz * yz)
        v_qz = 2.0 * (qw * yx + qx * xz + qy * yz - 2.0 * qz * (v_r[0, 0] + v_r[1, 1]))
        radial = qw * v_qw + qx * v_qx + qy * v_qy + qz * v_qz
        v_quats[b, g, 0] = (v_qw - qw * radial) / norm
        v_quats[b, g, 1] = (v_qx - qx * radial) / norm
        v_quats[b, g, 2] = (v_qy - qy * radial) / norm
        v_quats[b, g, 3] = (v_qz - qz * radial) / norm

        v_x, v_y = jx * v_means2d[b, g, 0], jy * v_means2d[b, g, 1]
        v_z = -(v_x * x + v_y * y + v_jx * jx + v_jy * jy) / z
        if free_x:
            v_x += v_tx / z
            v_z -= v_tx * tx / z
        if free_y:
            v_y += v_ty / z
            v_z -= v_ty * ty / z
        for j in range(3):
            v_means[b, g, j] = view[0, j] * v_x + view[1, j] * v_y + view[2, j] * v_z


@inlined
def _sort(depth_bits, radii, order):
    """Write the indices of the visible Gaussians, near to far, and return their number.

    Positive floats have the same order as their bits. The radix sort is stable, so that Gaussians
    of equal depth stay in the order of their indices.
    """
    source, target = np.empty_like(order), order
    n = 0
    for g in range(len(radii)):
        if radii[g] > 0:
            source[n] = g
            n += 1
    starts = np.empty(2048, np.int64)
    for shift in (0, 11, 22):
        starts[:] = 0
        for i in range(n):
            starts[(depth_bits[source[i]] >> shift) & 2047] += 1
        total = 0
        for digit in range(2048):
            total, starts[digit] = total + starts[digit], total
        for i in range(n):
            digit = (depth_bits[source[i]] >> shift) & 2047
            target[starts[digit]] = source[i]
            starts[digit] += 1
        source, target = target, source
    return n


@kernel
def _pack(
    task,
    n_tasks,
    means2d,
    conics,
    colors,
    opacities,
    depth_bits,
    extents,
    radii,
    visible,
    order,
    splats,
    spans,
    slots,
    counts,
):
    """Pack the splats of an image from near to far; count tiles per splat and splats per tile."""
    n_batch, down, across = counts.shape
    for b in range(task, n_batch, n_tasks):
        visible[b] = _sort(depth_bits[b], radii[b], order[b])
        for rank in range(visible[b]):
            g = order[b, rank]
            ca, cb, cc = float(conics[b, g, 0]), float(conics[b, g, 1]), float(conics[b, g, 2])
            x, y = means2d[b, g, 0], means2d[b, g, 1]
            extent_x, extent_y = extents[b, g, 0] + f32(0.01), extents[b, g, 1] + f32(0.01)
            splat, span = splats[b, rank], spans[b, rank]
            splat[0], splat[1], splat[2] = x, y, cb / ca
            splat[3], splat[4] = 0.5 * LOG2_E * ca, 0.5 * LOG2_E * (cc - cb * cb / ca)
            splat[5] = LOG2_E * np.log(float(opacities[b, g]))
            splat[6], splat[7], splat[8] = colors[b, g, 0], colors[b, g, 1], colors[b, g, 2]
            splat[9], splat[10] = extent_x, extent_y
            left = max(0, int(np.floor((x - extent_x) / TILE_W)))
            right = min(across - 1, int(np.floor((x + extent_x) / TILE_W)))
            top = max(0, int(np.floor((y - extent_y) / TILE_H)))
            bottom = min(down - 1, int(np.floor((y + extent_y) / TILE_H)))
            span[0], span[1], span[2], span[3] = left, right, top, bottom
            for ty in range(top, bottom + 1):
                for tx in range(left, right + 1):
                    counts[b, ty, tx] += 1
            slots[b, rank] = max(0, right - left + 1) * max(0, bottom - top + 1)


@kernel
def _list(task, n_tasks, visible, spans, slots, starts, entries):
    """List the splats of each tile from near to far as (rank, slot); `starts` then holds ends."""
    for b in range(task, len(visible), n_tasks):
        for rank in range(visible[b]):
            slot, span = slots[b, rank], spans[b, rank]
            for ty in range(span[2], span[3] + 1):
                for tx in range(span[0], span[1] + 1):
                    at = starts[b, ty, tx]
                    entries[at, 0], entries[at, 1] = rank, slot
                    starts[b, ty, tx] = at + 1
                    slot += 1


@inlined
def _pixels(center, extent, start, size):
    """Return the first and last of `size` pixels from `start` that lie within center +- extent."""
    first = max(0, int(np.ceil(center - extent - f32(0.5))) - start)
    last = min(size - 1, int(np.floor(center + extent - f32(0.5))) - start)
    return first, last


@inlined
def _touches(u, h, row):
    """Return whether a row of a block, starting at offset u, reaches the smallest visible alpha."""
    nearest = max(u, min(f32(0), u + f32(LANES - 1)))
    return row - h * nearest * nearest >= LOG2_ALPHA_MIN


@inlined
def _largest(tile, field, largest):
    """Write the largest value of a field in each block, and in the last row that of its column."""
    largest[TILE_H] = -1
    for y in range(TILE_H):
        for block in range(BLOCKS):
            start = index(y) * PITCH + field + index(block * LANES)
            value = f32(-1)
            for lane in range(WIDE):
                value = max(value, tile[start + lane])
            largest[y, block] = value
            largest[TILE_H, block] = max(largest[TILE_H, block], value)


@inlined
def _draw_tile(splats, entries, tile, through_of, x0, y0, rgb, alpha, transmittance, last):
    """Draw the entries of one tile from near to far."""
    height, width = last.shape
    rows, columns = min(TILE_H, height - y0), min(TILE_W, width - x0)
    tile[:] = 0
    for y in range(rows):
        base = index(y) * PITCH
        for x in range(index(columns)):
            tile[base + THROUGH + x] = 1
            tile[base + LAST + x] = -1
    for entry in range(len(entries)):
        if entry % CHECK_EVERY == 0:
            _largest(tile, THROUGH, through_of)
            if through_of[TILE_H].max() <= 0:
                break
        splat = splats[entries[entry, 0]]
        mx, my, slant, h, curve, peak = splat[0], splat[1], splat[2], splat[3], splat[4], splat[5]
        red, green, blue = splat[6], splat[7], splat[8]
        this = f32(entry)
        left, right = _pixels(mx, splat[9], x0, columns)
        top, bottom = _pixels(my, splat[10], y0, rows)
        for block in range(left // LANES, right // LANES + 1):
            x = block * LANES
            if through_of[TILE_H, block] <= 0:
                continue
            for y in range(top, bottom + 1):
                if through_of[y, block] <= 0:
                    continue
                dy = f32(y0 + y) + f32(0.5) - my
                u0 = f32(x0 + x) + f32(0.5) - mx + slant * dy
                row = peak - curve * dy * dy
                if not _touches(u0, h, row):
                    continue
                base = index(y) * PITCH + index(x)
                for lane in range(WIDE):
                    i = base + lane
                    u = u0 + f32(lane)
                    a = min(_exp2(max(row - h * u * u, f32(-64))), ALPHA_MAX)
                    a = a if a >= ALPHA_MIN else f32(0)
                    through = tile[i + THROUGH]
                    after = through * (f32(1) - a)
                    live = after > T_STOP
                    weight = a * through if live else f32(0)
                    tile[i + RED] += weight * red
                    tile[i + GREEN] += weight * green
                    tile[i + BLUE] += weight * blue
                    # a finished pixel keeps its transmittance, with negative sign
                    tile[i + THROUGH] = after if live else -abs(through)
                    # "this if live else tile[...]" would be compiled to a slow scatter
                    tile[i + LAST] = max(tile[i + LAST], this if live else f32(-1))
    for y in range(rows):
        for x in range(columns):
            i = index(y) * PITCH + index(x)
            rgb[y0 + y, x0 + x, 0] = tile[i + RED]
            rgb[y0 + y, x0 + x, 1] = tile[i + GREEN]
            rgb[y0 + y, x0 + x, 2] = tile[i + BLUE]
            through = abs(tile[i + THROUGH])
            alpha[y0 + y, x0 + x, 0] = f32(1) - through
            transmittance[y0 + y, x0 + x] = through
            last[y0 + y, x0 + x] = tile[i + LAST]


@inlined
def _draw_tile_backward(
    splats, entries, tile, last_of, acc, x0, y0, transmittance, last, v_rgb, v_alpha, sums
):
    """Go through the entries of one tile from far to near and write the moments of each."""
    height, width = last.shape
    rows, columns = min(TILE_H, height - y0), min(TILE_W, width - x0)
    tile[:] = 0
    for y in range(TILE_H):
        for x in range(index(TILE_W)):
            tile[index(y) * PITCH + LAST + x] = -1
    for y in range(rows):
        for x in range(columns):
            i = index(y) * PITCH + index(x)
            through = transmittance[y0 + y, x0 + x]
            tile[i + RED] = v_rgb[y0 + y, x0 + x, 0]
            tile[i + GREEN] = v_rgb[y0 + y, x0 + x, 1]
            tile[i + BLUE] = v_rgb[y0 + y, x0 + x, 2]
            tile[i + THROUGH] = through
            tile[i + BEHIND] = -through * v_alpha[y0 + y, x0 + x, 0]  # alpha = 1 - through
            tile[i + LAST] = last[y0 + y, x0 + x]
    _largest(tile, LAST, last_of)
    for entry in range(len(entries) - 1, -1, -1):
        splat = splats[entries[entry, 0]]
        mx, my, slant, h, curve, peak = splat[0], splat[1], splat[2], splat[3], splat[4], splat[5]
        red, green, blue = splat[6], splat[7], splat[8]
        this = f32(entry)
        left, right = _pixels(mx, splat[9], x0, columns)
        top, bottom = _pixels(my, splat[10], y0, rows)
        s_1 = s_x = s_y = s_xx = s_xy = s_yy = s_r = s_g = s_b = f32(0)
        for block in range(left // LANES, right // LANES + 1):
            x = block * LANES
            if last_of[TILE_H, block] < this:
                continue
            for lane in range(index(6 * LANES)):
                acc[lane] = 0
            for y in range(top, bottom + 1):
                if last_of[y, block] < this:
                    continue
                dy = f32(y0 + y) + f32(0.5) - my
                u0 = f32(x0 + x) + f32(0.5) - mx + slant * dy
                row = peak - curve * dy * dy
                if not _touches(u0, h, row):
                    continue
                base = index(y) * PITCH + index(x)
                for lane in range(WIDE):
                    i = base + lane
                    u = u0 + f32(lane)
                    raw = _exp2(max(row - h * u * u, f32(-64)))
                    a = min(raw, ALPHA_MAX)
                    drawn = (a >= ALPHA_MIN) & (this <= tile[i + LAST])
                    a = a if drawn else f32(0)
                    inverse = f32(1) / (f32(1) - a)
                    through = tile[i + THROUGH] * inverse
                    weight = a * through
                    v_r, v_g, v_b = tile[i + RED], tile[i + GREEN], tile[i + BLUE]
                    seen = red * v_r + green * v_g + blue * v_b
                    behind = tile[i + BEHIND]
                    # s = d loss / d sigma, which is 0 where alpha is clamped
                    s = a * (behind * inverse - seen * through)
                    s = s if raw <= ALPHA_MAX else f32(0)
                    tile[i + THROUGH] = through
                    tile[i + BEHIND] = behind + weight * seen
                    acc[lane] += s
                    acc[lane + WIDE] += s * dy
                    acc[lane + index(2 * LANES)] += s * dy * dy
                    acc[lane + index(3 * LANES)] += weight * v_r
                    acc[lane + index(4 * LANES)] += weight * v_g
                    acc[lane + index(5 * LANES)] += weight * v_b
            for lane in range(WIDE):
                dx = f32(x0 + x) + f32(0.5) - mx + f32(lane)
                s_1 += acc[lane]
                s_x += acc[lane] * dx
                s_xx += acc[lane] * dx * dx
                s_y += acc[lane + WIDE]
                s_xy += acc[lane + WIDE] * dx
                s_yy += acc[lane + index(2 * LANES)]
                s_r += acc[lane + index(3 * LANES)]
                s_g += acc[lane + index(4 * LANES)]
                s_b += acc[lane + index(5 * LANES)]
        out = sums[entries[entry, 1]]
        out[0], out[1], out[2], out[3], out[4], out[5] = s_1, s_x, s_y, s_xx, s_xy, s_yy
        out[6], out[7], out[8] = s_r, s_g, s_b


@kernel
def _draw(task, n_tasks, splats, ends, entries, rgb, alpha, transmittance, last):
    n_batch, down, across = ends.shape
    tile, through_of = np.empty(TILE_H * PITCH, f32), np.empty((TILE_H + 1, BLOCKS), f32)
    for t in range(task, n_batch * down * across, n_tasks):
        b, y, x = t // (down * across), t // across % down, t % across
        start = ends.ravel()[t - 1] if t > 0 else 0
        listed = entries[start : ends[b, y, x]]
        images = (rgb[b], alpha[b], transmittance[b], last[b])
        _draw_tile(splats[b], listed, tile, through_of, x * TILE_W, y * TILE_H, *images)


@kernel
def _draw_backward(task, n_tasks, splats, ends, entries, transmittance, last, v_rgb, v_alpha, sums):
    n_batch, down, across = ends.shape
    tile, last_of = np.empty(TILE_H * PITCH, f32), np.empty((TILE_H + 1, BLOCKS), f32)
    acc = np.empty(6 * LANES, f32)
    for t in range(task, n_batch * down * across, n_tasks):
        b, y, x = t // (down * across), t // across % down, t % across
        start = ends.ravel()[t - 1] if t > 0 else 0
        listed = entries[start : ends[b, y, x]]
        images = (transmittance[b], last[b], v_rgb[b], v_alpha[b])
        corner = x * TILE_W, y * TILE_H
        _draw_tile_backward(splats[b], listed, tile, last_of, acc, *corner, *images, sums)


@kernel
def _gather(
    task,
    n_tasks,
    visible,
    order,
    slots,
    sums,
    conics,
    opacities,
    v_means2d,
    v_conics,
    v_colors,
    v_opacities,
):
    """Add up the moments of every splat over its tiles, always in the same order."""
    n_batch, n = order.shape
    total = np.empty(MOMENTS, f32)
    ends = slots.ravel()[1:]
    for i in range(task * n_batch * n // n_tasks, (task + 1) * n_batch * n // n_tasks):
        b, rank = i // n, i % n
        if rank >= visible[b]:
            continue
        g = order[b, rank]
        total[:] = 0
        for slot in range(slots[b, rank], ends[i] if i < len(ends) else len(sums)):
            for m in range(MOMENTS):
                total[m] += sums[slot, m]
        ca, cb, cc = conics[b, g, 0], conics[b, g, 1], conics[b, g, 2]
        v_means2d[b, g, 0] = -(ca * total[1] + cb * total[2])
        v_means2d[b, g, 1] = -(cb * total[1] + cc * total[2])
        v_conics[b, g, 0], v_conics[b, g, 2] = f32(0.5) * total[3], f32(0.5) * total[5]
        v_conics[b, g, 1] = total[4]
        v_opacities[b, g] = -total[0] / opacities[b, g]
        v_colors[b, g, 0], v_colors[b, g, 1], v_colors[b, g, 2] = total[6], total[7], total[8]


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _tensors(*arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


class _Project(torch.autograd.Function):
    """Project Gaussians to means2d and conics, and to depths, extents, radii without gradient."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, width, height):
        shape = opacities.shape
        outputs = (
            np.zeros((*shape, 2), f32),
            np.zeros((*shape, 3), f32),
            np.zeros(shape, f32),
            np.zeros((*shape, 2), f32),
            np.zeros(shape, np.int32),
        )
        inputs = _arrays(means, quats, scales, opacities, viewmats, Ks)
        run(_project, *inputs, width, height, *outputs)
        means2d, conics, depths, extents, radii = _tensors(*outputs)
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, conics, radii)
        ctx.size = (width, height)
        ctx.mark_non_differentiable(depths, extents, radii)
        return means2d, conics, depths, extents, radii

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v_means2d, v_conics, *_):
        inputs = _arrays(*ctx.saved_tensors)
        outputs = tuple(np.zeros(array.shape, f32) for array in inputs[:3])
        run(_project_backward, *inputs, *ctx.size, *_arrays(v_means2d, v_conics), *outputs)
        return *_tensors(*outputs), *(None,) * 5


class _Draw(torch.autograd.Function):
    """Draw projected Gaussians to rgb and alpha."""

    @staticmethod
    def forward(ctx, means2d, conics, colors, opacities, depths, extents, radii, width, height):
        n_batch, n = opacities.shape
        visible = np.zeros(n_batch, np.int64)
        order = np.zeros((n_batch, n), np.int32)
        splats = np.empty((n_batch, n, SPLAT), f32)
        spans = np.empty((n_batch, n, 4), np.int32)
        slots = np.zeros((n_batch, n), np.int64)
        counts = np.zeros((n_batch, -(-height // TILE_H), -(-width // TILE_W)), np.int64)
        bits = depths.view(torch.int32)
        inputs = _arrays(means2d, conics, colors, opacities, bits, extents, radii)
        run(_pack, *inputs, visible, order, splats, spans, slots, counts, tasks=n_batch)
        # turn counts into the first indices of each splat's tiles and of each tile's splats
        slots, ends = (np.cumsum(x).reshape(x.shape) - x for x in (slots, counts))
        entries = np.empty((counts.sum(), 2), np.int32)
        run(_list, visible, spans, slots, ends, entries, tasks=n_batch)
        rgb = np.empty((n_batch, height, width, 3), f32)
        alpha = np.empty((n_batch, height, width, 1), f32)
        transmittance = np.empty((n_batch, height, width), f32)
        last = np.empty((n_batch, height, width), f32)
        run(_draw, splats, ends, entries, rgb, alpha, transmittance, last)
        ctx.save_for_backward(conics, opacities)
        ctx.drawn = (splats, ends, entries, transmittance, last)
        ctx.sorted = (visible, order, slots)
        return torch.from_numpy(rgb), torch.from_numpy(alpha)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v_rgb, v_alpha):
        conics, opacities = _arrays(*ctx.saved_tensors)
        sums = np.empty((len(ctx.drawn[2]), MOMENTS), f32)
        run(_draw_backward, *ctx.drawn, *_arrays(v_rgb, v_alpha), sums)
        shape = opacities.shape
        outputs = tuple(np.zeros(s, f32) for s in ((*shape, 2), (*shape, 3), (*shape, 3), shape))
        run(_gather, *ctx.sorted, sums, conics, opacities, *outputs)
        return *_tensors(*outputs), *(None,) * 5


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
    """Return rgb [B,H,W,3], alpha [B,H,W,1], means2d [B,G,2], radii [B,G] as `rasterize` does."""
    means2d, conics, depths, extents, radii = _Project.apply(
        means, quats, scales, opacities, viewmats, Ks, width, height
    )
    rgb, alpha = _Draw.apply(
        means2d, conics, colors, opacities, depths, extents, radii, width, height
    )
    return rgb, alpha, means2d, radii
