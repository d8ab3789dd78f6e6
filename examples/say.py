"""Let an avatar say something.

python examples/say.py results/me/avatar hello.wav hello.mp4 data/me
python examples/say.py me.avatar hello.wav hello.mp4
"""

import sys

import talker

avatar, speech, video, *data = sys.argv[1:]
me = talker.load(avatar, *data)
print(me.say(speech, video))
