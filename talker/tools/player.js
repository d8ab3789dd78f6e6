// Plays an avatar: the layers behind the head and the sound come from a video, the head is
// rendered as 3D Gaussians over it, which blendshapes deform. The arrays are described in talker/avatar/compact.py, and the
// geometry in docs/player.md. THREE is the global of three.min.js.
"use strict";

const FPS = 25;
const PLANES = 14; // parameters of a Gaussian that are deformed
const MIN_ZOOM = 0.7, MAX_ZOOM = 4;
const PATIENCE = 15; // pictures after which the resolution may be lowered
const MIN_RATIO = 0.5; // lowest number of pixels of the canvas per pixel of the recording
const BLUR = 0.3; // variance in pixels² that gsplat adds to every projected Gaussian
const SLOT = 16; // floats of a Gaussian in the texture that the GPU reads: four texels
const ROW = 256; // Gaussians in a row of the texture
const C0 = 0.28209479177387814;

// ------------------------------------------------------------------------------------ the file

function decodeBase64(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// Return the arrays and the metadata of a safetensors file.
function readArrays(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata, ...parts } = header, arrays = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(parts)) {
    const part = buffer.slice(8 + length + begin, 8 + length + end);
    const values = { F32: Float32Array, I8: Int8Array, F16: Uint16Array }[dtype];
    const array = new values(part);
    arrays[name] = { shape, data: dtype === "F16" ? Float32Array.from(array, half) : array };
  }
  return { arrays, metadata };
}

// Return the value of a float16 with the given bits.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return exponent === 31 ? NaN : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// ------------------------------------------------------------------------------------ geometry

// 4x4 matrices are row-major arrays of 16 numbers.
function multiply(a, b) {
  const c = new Array(16);
  for (let i = 0; i < 4; i++)
    for (let j = 0; j < 4; j++)
      c[4 * i + j] = a[4 * i] * b[j] + a[4 * i + 1] * b[4 + j] + a[4 * i + 2] * b[8 + j] + a[4 * i + 3] * b[12 + j];
  return c;
}

function transform(m, [x, y, z]) {
  return [0, 4, 8].map((i) => m[i] * x + m[i + 1] * y + m[i + 2] * z + m[i + 3]);
}

// Return the rotation of camera space by yaw and pitch in degrees around a point.
function orbit(yaw, pitch, pivot) {
  const [a, b] = [yaw, pitch].map((angle) => (angle * Math.PI) / 180);
  const [ca, sa, cb, sb] = [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b)];
  const rotation = [ca, 0, sa, 0, sb * sa, cb, -sb * ca, 0, -cb * sa, sb, cb * ca, 0, 0, 0, 0, 1];
  const moved = transform(rotation, pivot);
  for (let i = 0; i < 3; i++) rotation[4 * i + 3] = pivot[i] - moved[i];
  return rotation;
}

// Write the values of the harmonics after the first one in a direction into `basis`.
function harmonics(basis, count, x, y, z) {
  const c1 = 0.4886025119029199, c2 = 1.0925484305920792;
  const c3 = 0.5900435899266435, c4 = 1.445305721320277, c5 = 0.4570457994644658;
  if (count > 0) basis.set([-c1 * y, c1 * z, -c1 * x]);
  if (count > 3) {
    basis.set([c2 * x * y, -c2 * y * z, 0.31539156525252005 * (3 * z * z - 1)], 3);
    basis.set([-c2 * x * z, (c2 / 2) * (x * x - y * y)], 6);
  }
  if (count > 8) {
    basis.set([-c3 * y * (3 * x * x - y * y), 2 * c4 * x * y * z, -c5 * y * (5 * z * z - 1)], 8);
    basis.set([0.3731763325901154 * z * (5 * z * z - 3), -c5 * x * (5 * z * z - 1)], 11);
    basis.set([c4 * z * (x * x - y * y), -c3 * x * (x * x - 3 * y * y)], 13);
  }
}

// ------------------------------------------------------------------------------------ the head

class Head {
  constructor(arrays) {
    this.arrays = arrays;
    this.count = arrays.mean.shape[1];
    this.values = new Float32Array(PLANES * this.count);
    this.keys = new Uint16Array(this.count);
    this.order = new Uint32Array(this.count);
    this.starts = new Uint32Array(65537);
    this.basis = new Float32Array(15);
  }

  // Add the blendshapes of a frame to the mean, four at once because that is twice as fast.
  deform(frame) {
    const { mean, blendshapes, steps, weights } = this.arrays, n = this.count;
    const shapes = blendshapes.shape[0];
    this.values.set(mean.data);
    for (let p = 0; p < PLANES; p++) {
      const out = this.values.subarray(p * n, (p + 1) * n);
      for (let first = 0; first < shapes; first += 4) {
        const [[a, f], [b, g], [c, h], [d, l]] = [0, 1, 2, 3].map((next) => {
          const k = Math.min(first + next, shapes - 1), at = k * PLANES + p;
          const factor = first + next < shapes ? weights.data[frame * shapes + k] * steps.data[at] : 0;
          return [blendshapes.data.subarray(at * n, (at + 1) * n), factor];
        });
        for (let i = 0; i < n; i++) out[i] += f * a[i] + g * b[i] + h * c[i] + l * d[i];
      }
    }
  }

  // Sort the first Gaussians from back to front in a view, and write them into a buffer. Their colors
  // are those of the recorded view: the avatar has never seen others.
  write(shown, view, recordedView, buffer) {
    const { values: v, count: n, keys, order, starts, basis } = this;
    let near = Infinity, far = -Infinity;
    for (let i = 0; i < shown; i++) {
      const z = view[8] * v[i] + view[9] * v[n + i] + view[10] * v[2 * n + i] + view[11];
      near = Math.min(near, z);
      far = Math.max(far, z);
    }
    const scale = 65535 / Math.max(far - near, 1e-9);
    starts.fill(0);
    for (let i = 0; i < shown; i++) {
      const z = view[8] * v[i] + view[9] * v[n + i] + view[10] * v[2 * n + i] + view[11];
      keys[i] = (far - z) * scale;
      starts[keys[i] + 1]++;
    }
    for (let k = 0; k < 65535; k++) starts[k + 1] += starts[k];
    for (let i = 0; i < shown; i++) order[starts[keys[i]]++] = i;

    const rest = this.arrays.harmonics, bands = rest.shape[0] / 3;
    const [, , , tx, , , , ty, , , , tz] = recordedView;
    const eye = [0, 1, 2].map((j) => -(recordedView[j] * tx + recordedView[4 + j] * ty + recordedView[8 + j] * tz));
    for (let k = 0, at = 0; k < shown; k++, at += SLOT) {
      const i = order[k], x = v[i], y = v[n + i], z = v[2 * n + i];
      buffer[at] = x; buffer[at + 1] = y; buffer[at + 2] = z;
      buffer[at + 3] = 1 / (1 + Math.exp(-v[10 * n + i]));
      const norm = 1 / Math.hypot(v[3 * n + i], v[4 * n + i], v[5 * n + i], v[6 * n + i]);
      // the sign of w is chosen such that x, y and z determine the rotation
      const sign = v[3 * n + i] < 0 ? -norm : norm;
      for (let j = 0; j < 3; j++) {
        buffer[at + 4 + j] = sign * v[(4 + j) * n + i];
        buffer[at + 8 + j] = Math.exp(v[(7 + j) * n + i]);
        buffer[at + 12 + j] = 0.5 + C0 * v[(11 + j) * n + i];
      }
      if (!bands) continue;
      const dx = x - eye[0], dy = y - eye[1], dz = z - eye[2], length = Math.hypot(dx, dy, dz);
      harmonics(basis, bands, dx / length, dy / length, dz / length);
      for (let b = 0; b < bands; b++)
        for (let j = 0; j < 3; j++) buffer[at + 12 + j] += basis[b] * rest.data[(3 * b + j) * n + i];
    }
  }
}

// ---------------------------------------------------------------------------------- the picture

const CAMERA = `
  uniform mat4 view;    // to camera space: x right, y down, z forward
  uniform vec4 lens;    // focal lengths and principal point in pixels of the canvas
  uniform vec2 size;    // of the canvas in pixels
  vec4 screen(vec2 pixel, float depth) {
    return vec4((2.0 * pixel / size - 1.0) * vec2(1, -1), 0.0, 1.0) * depth;
  }`;

// The ellipse of a Gaussian, as in Zwicker et al., "EWA volume splatting" (2001), with the
// constants of gsplat.
const SPLAT_VERTEX = `
  precision highp float;
  in vec2 position;
  uniform highp sampler2D gaussians;
  uniform float blur;
  out vec2 offset;
  out vec4 color;
  ${CAMERA}
  vec4 texel(int part) {
    int i = gl_VertexID / 4;
    return texelFetch(gaussians, ivec2(4 * (i % ${ROW}) + part, i / ${ROW}), 0);
  }
  void main() {
    vec4 place = texel(0); // center, opacity
    vec3 turn = texel(1).xyz, extent = texel(2).xyz, tint = texel(3).rgb;
    vec3 t = (view * vec4(place.xyz, 1)).xyz;
    gl_Position = vec4(2, 2, 2, 1);
    if (t.z < 0.01 || place.w < 1.0 / 255.0) return;
    vec4 q = vec4(turn, sqrt(max(0.0, 1.0 - dot(turn, turn))));
    vec3 q2 = 2.0 * q.xyz;
    mat3 rotation = mat3(
      1.0 - q.y * q2.y - q.z * q2.z, q.x * q2.y + q.w * q2.z, q.x * q2.z - q.w * q2.y,
      q.x * q2.y - q.w * q2.z, 1.0 - q.x * q2.x - q.z * q2.z, q.y * q2.z + q.w * q2.x,
      q.x * q2.z + q.w * q2.y, q.y * q2.z - q.w * q2.x, 1.0 - q.x * q2.x - q.y * q2.y);
    vec2 f = lens.xy / t.z;
    mat3 jacobian = mat3(f.x, 0, 0, 0, f.y, 0, -f.x * t.x / t.z, -f.y * t.y / t.z, 0);
    mat3 axes = jacobian * mat3(view) * rotation;
    axes[0] *= extent.x; axes[1] *= extent.y; axes[2] *= extent.z;
    mat3 covariance = axes * transpose(axes);
    float a = covariance[0][0] + blur, b = covariance[0][1], c = covariance[1][1] + blur;
    float middle = 0.5 * (a + c), half_gap = length(vec2(0.5 * (a - c), b));
    float major = middle + half_gap, minor = max(middle - half_gap, 1e-6);
    vec2 direction = abs(b) < 1e-9 ? (a >= c ? vec2(1, 0) : vec2(0, 1)) : normalize(vec2(b, major - a));
    float reach = min(3.33, sqrt(2.0 * log(255.0 * place.w)));
    offset = reach * position;
    vec2 pixel = lens.zw + lens.xy * t.xy / t.z
      + offset.x * sqrt(major) * direction + offset.y * sqrt(minor) * vec2(-direction.y, direction.x);
    gl_Position = screen(pixel, 1.0);
    color = vec4(max(tint, 0.0), place.w);
  }`;

const SPLAT_FRAGMENT = `
  precision highp float;
  in vec2 offset;
  in vec4 color;
  out vec4 pixel;
  void main() {
    float alpha = min(0.999, color.a * exp(-0.5 * dot(offset, offset)));
    if (alpha < 1.0 / 255.0) discard;
    pixel = vec4(color.rgb * alpha, alpha);
  }`;

// The layers are a picture on a plane through the head, which fills the canvas in the recorded view.
const LAYER_VERTEX = `
  precision highp float;
  in vec2 position;
  uniform vec4 recorded; // focal lengths and principal point in pixels of the picture
  uniform vec2 picture;  // its size in pixels
  uniform float depth;
  out vec2 at;
  ${CAMERA}
  void main() {
    at = position;
    vec2 corner = (vec2(at.x, 1.0 - at.y) * picture - recorded.zw) / recorded.xy;
    vec3 t = (view * vec4(corner * depth, depth, 1)).xyz;
    gl_Position = screen(lens.zw + lens.xy * t.xy / t.z, t.z);
  }`;

const LAYER_FRAGMENT = `
  precision highp float;
  in vec2 at;
  uniform sampler2D layers;
  out vec4 pixel;
  void main() { pixel = vec4(texture(layers, at).rgb, 1); }`;

function material(vertexShader, fragmentShader, uniforms, blending) {
  return new THREE.RawShaderMaterial({
    glslVersion: THREE.GLSL3, vertexShader, fragmentShader, uniforms,
    depthTest: false, depthWrite: false, transparent: true, ...blending,
  });
}

class Stage {
  constructor(canvas, video, head, { width, height, lens, pivot, straight }) {
    Object.assign(this, { canvas, head, width, height, lens, pivot, straight });
    this.renderer = new THREE.WebGLRenderer({ canvas, alpha: true, antialias: false, depth: false });
    this.renderer.setClearColor(0, 0);
    this.renderer.sortObjects = false; // drawn in the order in which they are added
    this.texture = new THREE.Texture(video);
    this.texture.generateMipmaps = false;
    this.texture.minFilter = THREE.LinearFilter;
    const picture = [video.videoWidth, video.videoHeight]; // odd sizes grew by one pixel
    [video.width, video.height] = picture; // the size of the texture
    const shared = {
      view: { value: new THREE.Matrix4() },
      lens: { value: [...lens] },
      size: { value: [width, height] },
    };
    this.layer = { ...shared, view: { value: new THREE.Matrix4() }, layers: { value: this.texture } };
    Object.assign(this.layer, {
      recorded: { value: lens }, picture: { value: picture }, depth: { value: pivot[2] },
    });
    const rows = Math.ceil(head.count / ROW);
    this.buffer = new Float32Array(SLOT * ROW * rows);
    this.gaussians = new THREE.DataTexture(this.buffer, 4 * ROW, rows, THREE.RGBAFormat, THREE.FloatType);
    this.splats = { ...shared, blur: { value: BLUR }, gaussians: { value: this.gaussians } };
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(); // unused: the shaders have their own
    this.ellipses = this.quads();
    this.scene.add(this.plane(), this.mesh(this.ellipses, this.over()));
  }

  plane() {
    const geometry = new THREE.BufferGeometry();
    const corners = new Float32Array([0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1]);
    geometry.setAttribute("position", new THREE.BufferAttribute(corners, 2));
    return this.mesh(geometry, material(LAYER_VERTEX, LAYER_FRAGMENT, this.layer, { blending: THREE.NoBlending, side: 2 }));
  }

  // One quad for each Gaussian. They are not instances: software renderers draw each one separately.
  quads() {
    const n = this.head.count, geometry = new THREE.BufferGeometry();
    const corners = Float32Array.from({ length: 8 * n }, (_, i) => [-1, -1, 1, -1, -1, 1, 1, 1][i % 8]);
    const triangles = Uint32Array.from({ length: 6 * n }, (_, i) => 4 * Math.floor(i / 6) + [0, 1, 2, 2, 1, 3][i % 6]);
    geometry.setAttribute("position", new THREE.BufferAttribute(corners, 2));
    geometry.setIndex(new THREE.BufferAttribute(triangles, 1));
    return geometry;
  }

  over() {
    return material(SPLAT_VERTEX, SPLAT_FRAGMENT, this.splats, {
      blending: THREE.CustomBlending, blendEquation: THREE.AddEquation,
      blendSrc: THREE.OneFactor, blendDst: THREE.OneMinusSrcAlphaFactor, side: 2,
    });
  }

  mesh(geometry, shader) {
    const mesh = new THREE.Mesh(geometry, shader);
    mesh.frustumCulled = false;
    return mesh;
  }

  // Draw the head, as it was last deformed, in front of the latest picture of the video.
  draw(recordedView, { yaw, pitch, zoom }, pixelRatio) {
    this.renderer.setPixelRatio(pixelRatio);
    this.renderer.setSize(this.width, this.height, false);
    const turned = orbit(yaw, pitch, this.pivot), view = multiply(turned, recordedView);
    this.layer.view.value.set(...turned);
    this.splats.view.value.set(...view);
    const [fx, fy, cx, cy] = this.lens, [w, h] = [this.width / 2, this.height / 2];
    const lens = [fx * zoom, fy * zoom, (cx - w) * zoom + w, (cy - h) * zoom + h];
    this.splats.lens.value = this.layer.lens.value = lens.map((value) => value * pixelRatio);
    this.splats.size.value = this.layer.size.value = [this.canvas.width, this.canvas.height];
    this.splats.blur.value = BLUR * (zoom * pixelRatio) ** 2;
    const shown = yaw || pitch ? this.head.count : this.straight;
    this.head.write(shown, view, recordedView, this.buffer);
    this.ellipses.setDrawRange(0, 6 * shown);
    this.gaussians.needsUpdate = true;
    this.renderer.render(this.scene, this.camera);
  }

  // Wait until everything is drawn.
  finish() {
    const gl = this.renderer.getContext();
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
}

// ------------------------------------------------------------------------------------- the page

class Player {
  constructor(arrays, metadata, video, canvas) {
    this.video = video;
    this.views = arrays.views.data;
    this.frames = arrays.views.shape[0];
    const names = ["width", "height", "yaw", "pitch", "straight"];
    const [width, height, yaw, pitch, straight] = names.map((name) => Number(metadata[name]));
    const [lens, pivot] = [[...arrays.lens.data], [...arrays.pivot.data]];
    this.limits = { yaw, pitch };
    this.stage = new Stage(canvas, video, new Head(arrays), { width, height, lens, pivot, straight });
    this.look = { yaw: 0, pitch: 0, zoom: 1 };
    this.frame = -1;
    this.drawn = 0;
    this.pixelRatio = Math.min(2, Math.max(1, window.devicePixelRatio || 1));
    this.waiting = false;
    this.times = [];
    this.follow();
  }

  view(i) {
    return this.views.subarray(16 * i, 16 * i + 16);
  }

  // Draw whenever the video shows another picture.
  follow() {
    const video = this.video;
    const update = (time) => this.show(Math.min(this.frames - 1, Math.floor(time * FPS + 0.01)));
    if (video.requestVideoFrameCallback) {
      const next = (now, { mediaTime }) => {
        this.adapt(now);
        update(mediaTime);
        video.requestVideoFrameCallback(next);
      };
      video.requestVideoFrameCallback(next);
    } else {
      const next = () => {
        update(video.currentTime);
        requestAnimationFrame(next);
      };
      next();
    }
    for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, () => update(video.currentTime));
    if (video.readyState >= 2) update(video.currentTime);
  }

  // Lower the resolution if fewer than 20 pictures per second of the playing video were drawn.
  adapt(now) {
    this.times = this.video.paused ? [] : [...this.times, now].slice(-PATIENCE);
    if (this.times.length < PATIENCE || (now - this.times[0]) / (PATIENCE - 1) < 50) return;
    this.pixelRatio = Math.max(MIN_RATIO, 0.8 * this.pixelRatio);
    this.times = [];
  }

  show(frame) {
    if (frame !== this.frame) this.stage.head.deform(frame);
    this.frame = frame;
    this.stage.texture.needsUpdate = true;
    this.draw();
    this.onframe?.(frame);
  }

  draw() {
    if (this.frame < 0) return;
    this.stage.draw(this.view(this.frame), this.look, this.pixelRatio);
    this.drawn++;
  }

  // Draw before the next repaint; several calls draw once.
  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  turn(yaw, pitch, zoom = 1) {
    const { look, limits } = this, clamp = (value, low, high) => Math.max(low, Math.min(high, value));
    look.yaw = clamp(look.yaw + yaw, -limits.yaw, limits.yaw);
    look.pitch = clamp(look.pitch + pitch, -limits.pitch, limits.pitch);
    look.zoom = clamp(look.zoom * zoom, MIN_ZOOM, MAX_ZOOM);
    this.redraw();
  }

  reset() {
    this.look = { yaw: 0, pitch: 0, zoom: 1 };
    this.redraw();
  }

  // Show a frame while the video is paused; resolves when it is drawn.
  seek(frame) {
    const shown = new Promise((resolve) => this.video.addEventListener("seeked", resolve, { once: true }));
    this.video.currentTime = (frame + 0.5) / FPS;
    return shown;
  }

  // Return how many frames per second are deformed, sorted and drawn, measured over `count`.
  measure(count) {
    const start = performance.now();
    for (let i = 0; i < count; i++) {
      this.show(i % this.frames);
      this.stage.finish();
    }
    return (1000 * count) / (performance.now() - start);
  }
}

function connect(player) {
  const element = (id) => document.getElementById(id);
  const { video } = player, canvas = player.stage.canvas;
  const [play, mute, seek, time] = ["play", "mute", "seek", "time"].map(element);
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const duration = player.frames / FPS;
  seek.max = player.frames - 1;
  const position = (frame) => {
    seek.value = frame;
    time.textContent = `${clock(frame / FPS)} / ${clock(duration)}`;
    seek.setAttribute("aria-valuetext", `${clock(frame / FPS)} of ${clock(duration)}`);
  };
  player.onframe = position;
  position(Math.max(0, player.frame));
  const toggle = () => (video.paused ? video.play() : video.pause());
  play.onclick = toggle;
  for (const event of ["play", "pause", "ended"])
    video.addEventListener(event, () => (play.textContent = video.paused ? "Play" : "Pause"));
  mute.onclick = () => {
    video.muted = !video.muted;
    mute.textContent = video.muted ? "Unmute" : "Mute";
  };
  seek.oninput = () => (video.currentTime = (Number(seek.value) + 0.5) / FPS);
  element("reset").onclick = () => player.reset();
  element("in").onclick = () => player.turn(0, 0, 1.2);
  element("out").onclick = () => player.turn(0, 0, 1 / 1.2);

  const fingers = new Map();
  const gap = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  };
  canvas.onpointermove = (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? gap() : 0;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (fingers.size === 2) player.turn(0, 0, gap() / Math.max(before, 1));
    else player.turn((90 * dx) / canvas.clientWidth, (-60 * dy) / canvas.clientHeight);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => fingers.delete(event.pointerId);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    player.turn(0, 0, Math.exp(-event.deltaY / 500));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => player.turn(-5, 0), ArrowRight: () => player.turn(5, 0),
    ArrowUp: () => player.turn(0, 5), ArrowDown: () => player.turn(0, -5),
    "+": () => player.turn(0, 0, 1.1), "-": () => player.turn(0, 0, 1 / 1.1),
    0: () => player.reset(), " ": toggle,
  };
  canvas.onkeydown = (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  };
}

async function start() {
  const text = (id) => document.getElementById(id).textContent.trim();
  const { arrays, metadata } = readArrays(await gunzip(decodeBase64(text("avatar"))));
  const video = document.createElement("video");
  video.playsInline = true;
  video.preload = "auto";
  video.src = URL.createObjectURL(new Blob([decodeBase64(text("layers"))], { type: "video/mp4" }));
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error("This browser cannot play H.264 video."));
    video.load();
  });
  const player = new Player(arrays, metadata, video, document.getElementById("canvas"));
  connect(player);
  document.getElementById("controls").disabled = false;
  return player;
}

window.player = start();
window.player.catch((error) => {
  const message = document.getElementById("message");
  message.textContent = `The avatar cannot be shown: ${error.message}`;
  message.hidden = false;
});
