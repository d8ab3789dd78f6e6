"""Measure live sessions of `talker serve` on this machine: `measure_live.py me.avatar 1 8 32`.

All sessions run at once, as fast as they can, in threads like those of the server. The real-time
factor is the computing time of all sessions over the duration of their speech: below 1 the machine
keeps up. The time of a hop is that from its audio to its messages with the encoded frames. The
latency is the time from a sound to its frame: the waiting time of `talker speak`, and a hop. It is
an upper bound, because in real time the sessions do not compute all at once.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.tools.live import Avatars, Session
from talker.tools.speak import Config

SECONDS = 8
"""Duration of the speech of each session."""


def hops(session: Session, seed: int) -> list[float]:
    """Return the computing times in seconds of the hops of a session that speaks noise."""
    noise = np.random.default_rng(seed).normal(0, 3000, SECONDS * FPS * SAMPLES_PER_FRAME)
    session.say(noise.astype(np.int16))
    times = []
    for _ in range(SECONDS * FPS // session.streaming.config.hop):
        start = time.perf_counter()
        session.advance()
        times.append(time.perf_counter() - start)
    return times


def main(avatar: Path, counts: list[int]) -> None:
    """Print a row for each number of sessions."""
    avatars = Avatars(Config())
    hops(avatars.session(avatar), 0)  # compiles
    print(
        "sessions, real-time factor, CPU seconds per second, hop in ms: median, 95th percentile; "
        "latency in ms: median, 95th percentile"
    )
    for count in counts:
        sessions = [avatars.session(avatar) for _ in range(count)]
        start, work = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(count) as pool:
            times = np.concatenate(list(pool.map(hops, sessions, range(count))))
        factor = (time.perf_counter() - start) / SECONDS
        work = (time.process_time() - work) / SECONDS / count
        columns = 1000 * np.quantile(times, (0.5, 0.95))
        columns = [*columns, *(columns + 1000 * sessions[0].streaming.latency)]
        row = ", ".join(f"{column:.0f}" for column in columns)
        print(f"{count}, {factor:.2f}, {work:.2f}, {row}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [1])
