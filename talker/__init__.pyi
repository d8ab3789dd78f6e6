from talker.api import TalkingAvatar as TalkingAvatar
from talker.api import load as load
from talker.dataset import Dataset as Dataset

__version__: str
