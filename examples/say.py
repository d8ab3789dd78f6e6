"""Let an avatar say something.

python examples/say.py data/me results/me/avatar hello.wav hello.mp4
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from talker import audio, render, speech

data, avatar, source, video = map(Path, sys.argv[1:])
with TemporaryDirectory() as folder:
    wav, features = Path(folder, "speech.wav"), Path(folder, "speech.npy")
    audio.main(source=source, wav=wav)
    speech.main(wav=wav, statistics=avatar / "speech.npz", features=features)
    render.main(data=data, avatar=avatar, speech=features, wav=wav, video=video)
