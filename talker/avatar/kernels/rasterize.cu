// Rasterize Gaussians into many small images, and compute the gradients.
//
// The images are divided into tiles of 16x16 pixels, and each tile into four quadrants of 8x8. The
// kernels run in this order:
//
//   pack_splats     bring together what is read of each splat; PyTorch then sorts them by depth
//   count_splats    count the splats of each tile in chunks of 256 sorted splats
//   scan_chunks     add up the counts, which gives each chunk its place in each list
//   list_splats     write the lists: the splats of each tile, in the order of their depth
//   draw            blend the splats of each list, from front to back
//   draw_backward   compute the gradients of each entry of each list, from back to front
//   add_gradients   add up the gradients of each splat over its lists
//
// A splat is only listed in a tile, and only drawn in a quadrant, if its alpha may reach 1/255
// somewhere inside. All sums are computed in a fixed order, so the results are bitwise reproducible.

constexpr int TILE = 16, QUADRANT = 8;
constexpr int CHUNK = 256;       // splats that a block counts or lists
constexpr int WORDS = CHUNK / 32;
constexpr int BAND = 1024;       // tiles whose masks fit into shared memory
constexpr int SCANNED = 16;      // chunks whose counts are read at once
constexpr int THREADS = 128;     // threads that draw a tile: a warp for each quadrant
constexpr int BATCH = 64;        // entries of a list that the backward pass processes at once
constexpr int VALUES = 9;        // gradients of an entry: six moments and a color
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LOWEST = -7.994353436858858f;  // log2(1 / 255), the smallest alpha that is drawn
constexpr float HIGHEST = 0.999f;              // the largest alpha
constexpr float OPAQUE = 1e-4f;                // transmittance at which a ray ends

// Alpha is exp2(peak + xx dx^2 + xy dx dy + yy dy^2), at the distance (dx, dy) from the center.
struct alignas(16) Splat {
    float x, y, xx, xy;
    float yy, peak, red, green;
    float blue, reach_x, reach_y, unused;  // reach: half the sides of the bounding box in pixels
};

__device__ float clamped(float value, float low, float high) {
    return fminf(fmaxf(value, low), high);
}

// Whether alpha at (dx, dy), the largest on an edge of a square, reaches 1/255. Rounding may only
// add splats, so the threshold is lowered by the rounding error of the terms. The kernels that count
// and list splats must agree, so each operation is rounded by itself: otherwise, the compiler could
// fuse other operations in each kernel.
__device__ bool reaches(const Splat& s, float dx, float dy) {
    float xx = __fmul_rn(__fmul_rn(s.xx, dx), dx), yy = __fmul_rn(__fmul_rn(s.yy, dy), dy);
    float xy = __fmul_rn(__fmul_rn(s.xy, dx), dy);
    float size = __fadd_rn(__fadd_rn(fabsf(xx), fabsf(xy)), fabsf(yy));
    float exponent = __fadd_rn(__fadd_rn(__fadd_rn(xx, xy), yy), s.peak);
    return exponent >= __fmaf_rn(-1e-6f, size, LOWEST - 1e-3f);
}

// Whether a splat is drawn anywhere in the square of pixels with the corner (left, top).
__device__ bool touches(const Splat& s, float left, float top, float side) {
    float x0 = left + 0.5f - s.x, x1 = x0 + side - 1, y0 = top + 0.5f - s.y, y1 = y0 + side - 1;
    float dx = clamped(0, x0, x1), dy = clamped(0, y0, y1);
    if (dx == 0 && dy == 0) return true;
    // the exponent is concave, so its maximum lies on an edge that faces the center
    return (dx != 0 && reaches(s, dx, clamped(-0.5f * s.xy * dx / s.yy, y0, y1))) ||
           (dy != 0 && reaches(s, clamped(-0.5f * s.xy * dy / s.xx, x0, x1), dy));
}

// Call `visit` with the number of each tile in rows first .. first + rows - 1 that a splat touches.
template <class Visit>
__device__ void visit_tiles(const Splat& s, int first, int rows, int across, Visit visit) {
    int left = max(0, int(floorf((s.x - s.reach_x) / TILE)));
    int right = min(across, int(ceilf((s.x + s.reach_x) / TILE)));
    int top = max(first, int(floorf((s.y - s.reach_y) / TILE)));
    int bottom = min(first + rows, int(ceilf((s.y + s.reach_y) / TILE)));
    for (int row = top; row < bottom; row++)
        for (int column = left; column < right; column++)
            if (touches(s, column * TILE, row * TILE, TILE)) visit((row - first) * across + column);
}

// Set bit `threadIdx.x` of the mask of each tile that the thread's splat touches.
__device__ void mark_tiles(unsigned (*masks)[BAND], const Splat& s, int first, int rows, int across) {
    __syncthreads();
    for (int tile = threadIdx.x; tile < rows * across; tile += CHUNK)
        for (int word = 0; word < WORDS; word++) masks[word][tile] = 0;
    __syncthreads();
    if (s.reach_x > 0)
        visit_tiles(s, first, rows, across, [&](int tile) {
            atomicOr(&masks[threadIdx.x / 32][tile], 1u << threadIdx.x % 32);
        });
    __syncthreads();
}

// Return how many splats of the chunk are before that of the thread in a tile.
__device__ int rank_in(const unsigned (*masks)[BAND], int tile) {
    int word = threadIdx.x / 32;
    int rank = __popc(masks[word][tile] & ((1u << threadIdx.x % 32) - 1));
    for (int i = 0; i < word; i++) rank += __popc(masks[i][tile]);
    return rank;
}

// Call `visit` with a tile, and with the entry of its list that belongs to the thread's splat.
template <class Visit>
__device__ void visit_entries(
    const Splat& s, const int* counts, const int* ends, int chunks, int across, int down, Visit visit
) {
    __shared__ unsigned masks[WORDS][BAND];
    int tiles = across * down, image = blockIdx.y;
    const int* before = counts + (size_t(image) * chunks + blockIdx.x) * tiles;
    for (int first = 0, step = BAND / across; first < down; first += step) {
        int rows = min(step, down - first);
        mark_tiles(masks, s, first, rows, across);
        if (s.reach_x > 0)
            visit_tiles(s, first, rows, across, [&](int in_band) {
                int tile = first * across + in_band, cell = image * tiles + tile;
                int start = cell ? ends[cell - 1] : 0;
                visit(cell, start, start + before[tile] + rank_in(masks, in_band));
            });
    }
}

// Bring together the inputs of each of `count` splats, and write their depths, which are infinite
// for splats that are not visible.
extern "C" __global__ void pack_splats(
    const float2* means, const int2* radii, const float* distances, const float* conics,
    const float* opacities, const float* colors, Splat* splats, float* depths, int count
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int2 radius = radii[i];
    Splat s = {};
    bool visible = radius.x > 0 && radius.y > 0;
    if (visible) {
        s.x = means[i].x, s.y = means[i].y;
        s.xx = -0.5f * LOG2E * conics[3 * i], s.xy = -LOG2E * conics[3 * i + 1];
        s.yy = -0.5f * LOG2E * conics[3 * i + 2];
        s.peak = log2f(opacities[i]);
        s.red = colors[3 * i], s.green = colors[3 * i + 1], s.blue = colors[3 * i + 2];
        s.reach_x = radius.x, s.reach_y = radius.y;
    }
    splats[i] = s;
    depths[i] = visible ? distances[i] : __int_as_float(0x7f800000);
}

// A splat of the chunk blockIdx.x of image blockIdx.y.
struct Sorted {
    Splat splat;
    int number;    // of the G splats of the image, or -1
};

// order [B, G] sorts the splats [B, G] of each image by depth.
__device__ Sorted sorted_splat(const Splat* splats, const long long* order, int gaussians) {
    int at = blockIdx.x * CHUNK + threadIdx.x;
    size_t offset = size_t(blockIdx.y) * gaussians;
    Sorted s = {{}, -1};
    if (at < gaussians) {
        s.number = order[offset + at];
        s.splat = splats[offset + s.number];
    }
    return s;
}

// Write the counts [B, chunks, tiles] of the splats in each tile.
extern "C" __global__ void __launch_bounds__(CHUNK) count_splats(
    const Splat* splats, const long long* order, int* counts, int gaussians, int across, int down
) {
    __shared__ unsigned masks[WORDS][BAND];
    Splat s = sorted_splat(splats, order, gaussians).splat;
    int* mine = counts + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * across * down;
    for (int first = 0, step = BAND / across; first < down; first += step) {
        int rows = min(step, down - first);
        mark_tiles(masks, s, first, rows, across);
        for (int tile = threadIdx.x; tile < rows * across; tile += CHUNK) {
            int count = 0;
            for (int word = 0; word < WORDS; word++) count += __popc(masks[word][tile]);
            mine[first * across + tile] = count;
        }
    }
}

// Replace counts [B, chunks, tiles] by the sums of the chunks before, and write totals [B, tiles].
extern "C" __global__ void scan_chunks(int* counts, int* totals, int chunks, int tiles) {
    int tile = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    if (tile >= tiles) return;
    int* column = counts + size_t(image) * chunks * tiles + tile;
    int total = 0;
    for (int first = 0; first < chunks; first += SCANNED) {
        int count[SCANNED];  // all are read before any is written, so the reads do not wait
#pragma unroll
        for (int i = 0; i < SCANNED; i++)
            count[i] = first + i < chunks ? column[size_t(first + i) * tiles] : 0;
#pragma unroll
        for (int i = 0; i < SCANNED; i++) {
            if (first + i < chunks) column[size_t(first + i) * tiles] = total;
            total += count[i];
        }
    }
    totals[image * tiles + tile] = total;
}

// Write the lists, of which ends [B, tiles] are the ends.
extern "C" __global__ void __launch_bounds__(CHUNK) list_splats(
    const Splat* splats, const long long* order, const int* counts, const int* ends, int* lists,
    int gaussians, int across, int down
) {
    Sorted s = sorted_splat(splats, order, gaussians);
    visit_entries(s.splat, counts, ends, gridDim.x, across, down, [&](int, int, int entry) {
        lists[entry] = s.number;
    });
}

// Entries of a list in shared memory, and the quadrants in which each is drawn, as bits.
template <int SIZE>
struct Entries {
    float4 shape[SIZE];  // x, y, xx, xy
    float4 rest[SIZE];   // yy, peak, red, green
    float blue[SIZE];
    unsigned quadrants[SIZE];

    __device__ void load(int k, bool exists, const Splat* splats, const int* entry, float left, float top) {
        unsigned bits = 0;
        if (exists) {
            Splat s = splats[*entry];
            shape[k] = make_float4(s.x, s.y, s.xx, s.xy);
            rest[k] = make_float4(s.yy, s.peak, s.red, s.green);
            blue[k] = s.blue;
            for (int quadrant = 0; quadrant < 4; quadrant++) {
                float x = left + QUADRANT * (quadrant & 1), y = top + QUADRANT * (quadrant >> 1);
                if (touches(s, x, y, QUADRANT)) bits |= 1u << quadrant;
            }
        }
        quadrants[k] = bits;
    }
};

// The alpha of a splat along a column of pixels at the distance dx from its center.
struct Column {
    float constant, slope, yy, peak;

    __device__ Column(const float4& shape, const float4& rest, float dx)
        : constant(shape.z * dx * dx + rest.y), slope(shape.w * dx), yy(rest.x), peak(rest.y) {}

    // Return alpha, or 0 where the splat is not drawn.
    __device__ float alpha(float dy) const {
        float exponent = (yy * dy + slope) * dy + constant;
        bool drawn = exponent <= peak && exponent >= LOWEST;
        return drawn ? fminf(HIGHEST, exp2f(exponent)) : 0;
    }
};

// Draw tile blockIdx.x of image blockIdx.y. Each thread draws two pixels, (x, y) and (x, y + 4).
// If TRAIN, also write their transmittances and the last entries of the list that were drawn.
template <bool TRAIN>
__device__ void draw_tile(
    const Splat* splats, const int* lists, const int* ends, float* rgb, float* alpha,
    float* transmittances, int* lasts, int gaussians, int width, int height, int across
) {
    __shared__ Entries<THREADS> entries;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int cell = blockIdx.y * gridDim.x + blockIdx.x, start = cell ? ends[cell - 1] : 0;
    int left = blockIdx.x % across * TILE, top = blockIdx.x / across * TILE;
    int x = left + (warp & 1) * QUADRANT + (lane & 7), y = top + (warp >> 1) * QUADRANT + (lane >> 3);
    bool inside[2] = {x < width && y < height, x < width && y + 4 < height};
    float open[2] = {float(inside[0]), float(inside[1])};  // transmittance, 0 where the ray ended
    float rest[2] = {1, 1}, red[2] = {}, green[2] = {}, blue[2] = {};
    int last[2] = {-1, -1}, length = ends[cell] - start;
    splats += size_t(blockIdx.y) * gaussians;
    lists += start;
    for (int base = 0; base < length; base += THREADS) {
        if (!__syncthreads_or(open[0] + open[1] > 0)) break;
        int at = base + threadIdx.x;
        entries.load(threadIdx.x, at < length, splats, lists + at, left, top);
        __syncthreads();
        for (int first = 0; first < min(THREADS, length - base); first += 32) {
            unsigned todo = __ballot_sync(~0u, entries.quadrants[first + lane] >> warp & 1);
            if (!__any_sync(~0u, open[0] + open[1] > 0)) break;
            for (; todo; todo &= todo - 1) {
                int k = first + __ffs(todo) - 1;
                float4 shape = entries.shape[k], other = entries.rest[k];
                float dy = shape.y - (y + 0.5f), blueness = entries.blue[k];
                Column column(shape, other, shape.x - (x + 0.5f));
#pragma unroll
                for (int i = 0; i < 2; i++) {  // without branches, which would take longer
                    float weight = column.alpha(dy - 4 * i) * open[i];
                    float next = open[i] - weight;
                    bool drawn = next > OPAQUE;
                    weight = drawn ? weight : 0;
                    red[i] += weight * other.z, green[i] += weight * other.w;
                    blue[i] += weight * blueness;
                    open[i] = drawn ? next : 0;
                    rest[i] = drawn ? next : rest[i];
                    if (TRAIN) last[i] = weight > 0 ? base + k : last[i];
                }
            }
        }
    }
    for (int i = 0; i < 2; i++)
        if (inside[i]) {
            size_t pixel = (size_t(blockIdx.y) * height + y + 4 * i) * width + x;
            rgb[3 * pixel] = red[i], rgb[3 * pixel + 1] = green[i], rgb[3 * pixel + 2] = blue[i];
            alpha[pixel] = 1 - rest[i];
            if (TRAIN) transmittances[pixel] = rest[i], lasts[pixel] = last[i];
        }
}

extern "C" __global__ void __launch_bounds__(THREADS) draw(
    const Splat* splats, const int* lists, const int* ends, float* rgb, float* alpha,
    int gaussians, int width, int height, int across
) {
    draw_tile<false>(
        splats, lists, ends, rgb, alpha, nullptr, nullptr, gaussians, width, height, across
    );
}

extern "C" __global__ void __launch_bounds__(THREADS) draw_for_training(
    const Splat* splats, const int* lists, const int* ends, float* rgb, float* alpha,
    float* transmittances, int* lasts, int gaussians, int width, int height, int across
) {
    draw_tile<true>(
        splats, lists, ends, rgb, alpha, transmittances, lasts, gaussians, width, height, across
    );
}

// Add up 8 values over the lanes of a warp; lane 4 k returns the sum of value k.
__device__ float sum_of_eight(float (&value)[8]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int count = 4, distance = 16; count; count /= 2, distance /= 2)
#pragma unroll
        for (int i = 0; i < count; i++) {
            float kept = lane & distance ? value[i + count] : value[i];
            float sent = lane & distance ? value[i] : value[i + count];
            value[i] = kept + __shfl_xor_sync(~0u, sent, distance);
        }
    value[0] += __shfl_xor_sync(~0u, value[0], 2);
    return value[0] + __shfl_xor_sync(~0u, value[0], 1);
}

__device__ float sum_of_one(float value) {
    for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
    return value;
}

// Compute the gradients of the entries of the list of tile blockIdx.x in image blockIdx.y, from
// back to front. They are the moments of the gradient g of the negative exponent, in natural units
// (the sums of g, g dx, g dy, g dx^2, g dx dy and g dy^2 over the pixels), and that of the color.
// `drawn` [B, tiles] is the number of entries of a list that were drawn; the others get none.
extern "C" __global__ void __launch_bounds__(THREADS) draw_backward(
    const Splat* splats, const int* lists, const int* ends, const float* transmittances,
    const int* lasts, const float* rgb_gradient, const float* alpha_gradient,
    float4* gradients, int* drawn, int gaussians, int width, int height, int across
) {
    __shared__ Entries<BATCH> entries;
    __shared__ float sums[4][BATCH][VALUES];
    __shared__ int depth;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int cell = blockIdx.y * gridDim.x + blockIdx.x, start = cell ? ends[cell - 1] : 0;
    int left = blockIdx.x % across * TILE, top = blockIdx.x / across * TILE;
    int x = left + (warp & 1) * QUADRANT + (lane & 7), y = top + (warp >> 1) * QUADRANT + (lane >> 3);
    int last[2] = {-1, -1};
    float red[2] = {}, green[2] = {}, blue[2] = {}, opacity[2] = {}, rest[2] = {}, behind[2] = {};
    if (threadIdx.x == 0) depth = 0;
    __syncthreads();
    for (int i = 0; i < 2; i++)
        if (x < width && y + 4 * i < height) {
            size_t pixel = (size_t(blockIdx.y) * height + y + 4 * i) * width + x;
            red[i] = rgb_gradient[3 * pixel], green[i] = rgb_gradient[3 * pixel + 1];
            blue[i] = rgb_gradient[3 * pixel + 2];
            rest[i] = transmittances[pixel], last[i] = lasts[pixel];
            opacity[i] = rest[i] * alpha_gradient[pixel];
        }
    atomicMax(&depth, max(last[0], last[1]) + 1);
    __syncthreads();
    if (threadIdx.x == 0) drawn[cell] = depth;
    splats += size_t(blockIdx.y) * gaussians;
    lists += start;
    int mine = max(last[0], last[1]);
    for (int stop = depth; stop > 0; stop -= BATCH) {
        int base = max(0, stop - BATCH), size = stop - base;
        if (threadIdx.x < BATCH)
            entries.load(threadIdx.x, threadIdx.x < size, splats, lists + base + threadIdx.x, left, top);
        __syncthreads();
        for (int first = BATCH - 32; first >= 0; first -= 32) {
            unsigned todo = __ballot_sync(~0u, entries.quadrants[first + lane] >> warp & 1);
            while (todo) {
                int bit = 31 - __clz(todo), k = first + bit;
                todo ^= 1u << bit;
                float4 shape = entries.shape[k], other = entries.rest[k];
                float value[8] = {}, blue_sum = 0;
                bool any = false;
                if (base + k <= mine) {
                    float dx = shape.x - (x + 0.5f);
                    Column column(shape, other, dx);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float dy = shape.y - (y + 0.5f) - 4 * i;
                        float a = base + k <= last[i] ? column.alpha(dy) : 0;
                        if (a == 0) continue;
                        any = true;
                        float inverse = 1 / (1 - a);
                        rest[i] *= inverse;
                        float weight = a * rest[i];
                        float shade = red[i] * other.z + green[i] * other.w + blue[i] * entries.blue[k];
                        float slope = rest[i] * shade + inverse * (opacity[i] - behind[i]);
                        behind[i] += weight * shade;
                        value[6] += weight * red[i], value[7] += weight * green[i];
                        blue_sum += weight * blue[i];
                        if (a < HIGHEST) {
                            float g = -a * slope, gx = g * dx, gy = g * dy;
                            value[0] += g, value[1] += gx, value[2] += gy;
                            value[3] += gx * dx, value[4] += gx * dy, value[5] += gy * dy;
                        }
                    }
                }
                if (__any_sync(~0u, any)) {
                    float sum = sum_of_eight(value);
                    blue_sum = sum_of_one(blue_sum);
                    if (lane % 4 == 0) sums[warp][k][lane / 4] = sum;
                    if (lane == 0) sums[warp][k][8] = blue_sum;
                } else if (lane < VALUES) {
                    sums[warp][k][lane] = 0;
                }
            }
        }
        __syncthreads();
        if (threadIdx.x < size) {
            float total[12] = {};
            for (int quadrant = 0; quadrant < 4; quadrant++)
                if (entries.quadrants[threadIdx.x] >> quadrant & 1)
                    for (int i = 0; i < VALUES; i++) total[i] += sums[quadrant][threadIdx.x][i];
            float4* out = gradients + 3 * size_t(start + base + threadIdx.x);
            out[0] = make_float4(total[0], total[1], total[2], total[3]);
            out[1] = make_float4(total[4], total[5], total[6], total[7]);
            out[2] = make_float4(total[8], 0, 0, 0);
        }
        __syncthreads();
    }
}

// Add up the gradients of each splat over its lists, and write those of the inputs [B, G, ...].
extern "C" __global__ void __launch_bounds__(CHUNK) add_gradients(
    const Splat* splats, const long long* order, const int* counts, const int* ends,
    const int* drawn, const float4* gradients, const float* conics, const float* opacities,
    float2* means_gradient, float* conics_gradient, float* opacities_gradient,
    float* colors_gradient, int gaussians, int across, int down
) {
    Sorted s = sorted_splat(splats, order, gaussians);
    float4 first = {}, second = {};
    float blue = 0;
    visit_entries(s.splat, counts, ends, gridDim.x, across, down, [&](int cell, int start, int entry) {
        if (entry - start >= drawn[cell]) return;
        float4 a = gradients[3 * size_t(entry)], b = gradients[3 * size_t(entry) + 1];
        first.x += a.x, first.y += a.y, first.z += a.z, first.w += a.w;
        second.x += b.x, second.y += b.y, second.z += b.z, second.w += b.w;
        blue += gradients[3 * size_t(entry) + 2].x;
    });
    if (s.number < 0) return;
    size_t i = size_t(blockIdx.y) * gaussians + s.number;
    float xx = conics[3 * i], xy = conics[3 * i + 1], yy = conics[3 * i + 2];
    bool visible = s.splat.reach_x > 0;  // the others have undefined conics
    means_gradient[i] = visible
        ? make_float2(xx * first.y + xy * first.z, xy * first.y + yy * first.z)
        : make_float2(0, 0);
    conics_gradient[3 * i] = 0.5f * first.w;
    conics_gradient[3 * i + 1] = second.x;
    conics_gradient[3 * i + 2] = 0.5f * second.y;
    opacities_gradient[i] = visible ? -first.x / opacities[i] : 0;
    colors_gradient[3 * i] = second.z;
    colors_gradient[3 * i + 1] = second.w;
    colors_gradient[3 * i + 2] = blue;
}
