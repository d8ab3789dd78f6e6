from talker.dataset import Dataset as Dataset
from talker.tools.api import TalkingAvatar as TalkingAvatar
from talker.tools.api import load as load

__version__: str
