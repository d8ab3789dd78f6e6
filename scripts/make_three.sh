#!/bin/sh
# Write talker/tools/three.min.js: the parts of three.js that the player uses, with its license.
# Needs npm. After a change, run `pytest tests/test_player.py`.
set -eu
three=0.187.0 esbuild=0.28.2
target="$(cd "$(dirname "$0")/.." && pwd)/talker/tools/three.min.js"
folder="$(mktemp -d)"
trap 'rm -r "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --ignore-scripts=false "three@$three" "esbuild@$esbuild"
npm rebuild --silent esbuild
cat >entry.js <<'JS'
export {
  AddEquation, BufferAttribute, BufferGeometry, CustomBlending, DataTexture, FloatType, GLSL3,
  LinearFilter, Matrix4, Mesh, NoBlending, OneFactor, OneMinusSrcAlphaFactor, PerspectiveCamera,
  RawShaderMaterial, RGBAFormat, Scene, Texture, WebGLRenderer,
} from "three";
JS
node_modules/.bin/esbuild entry.js --bundle --minify --format=iife --global-name=THREE \
  --target=es2022 --legal-comments=none --log-level=warning --outfile=three.min.js
{
  printf '/* three.js %s, https://threejs.org\n\n' "$three"
  cat node_modules/three/LICENSE
  printf '*/\n'
  cat three.min.js
} >"$target"
