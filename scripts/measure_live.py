"""Measure live sessions of `talker serve` on this machine: `measure_live.py me.avatar 1 8 32`.

All sessions run at once, as fast as they can, in threads like those of the server. The real-time
factor is the computing time of all sessions over the duration of their speech: below 1 the machine
keeps up. The time of a hop is that from its audio to its messages with the encoded frames. The
latency is the time from a sound to its frame: the waiting time of `talker speak`, and a hop. It is
an upper bound, because in real time the sessions do not compute all at once.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.tools.live import Avatars, Session
from talker.tools.speak import Config


def hops(session: Session, seed: int, seconds: int) -> list[float]:
    """Return the computing times in seconds of the hops of a session that speaks noise."""
    noise = np.random.default_rng(seed).normal(0, 3000, seconds * FPS * SAMPLES_PER_FRAME)
    session.say(noise.astype(np.int16))
    times = []
    for _ in range(seconds * FPS // session.streaming.config.hop):
        start = time.perf_counter()
        session.advance()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print a row for each number of sessions."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("avatar", type=Path)
    parser.add_argument("sessions", type=int, nargs="*", default=[1])
    parser.add_argument("--seconds", type=int, default=8, help="duration of the speech")
    arguments = parser.parse_args()
    avatar, seconds = arguments.avatar, arguments.seconds
    avatars = Avatars(Config())
    hops(avatars.session(avatar), 0, 2)  # compiles
    print(
        "sessions, real-time factor, CPU seconds per second, hop in ms: median, 95th percentile; "
        "latency in ms: median, 95th percentile"
    )
    for count in arguments.sessions:
        sessions = [avatars.session(avatar) for _ in range(count)]
        start, work = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(count) as pool:
            rows = pool.map(hops, sessions, range(count), [seconds] * count)
            times = np.concatenate(list(rows))
        factor = (time.perf_counter() - start) / seconds
        work = (time.process_time() - work) / seconds / count
        columns = 1000 * np.quantile(times, (0.5, 0.95))
        columns = [*columns, *(columns + 1000 * sessions[0].streaming.latency)]
        row = ", ".join(f"{column:.0f}" for column in columns)
        print(f"{count}, {factor:.2f}, {work:.2f}, {row}", flush=True)


if __name__ == "__main__":
    main()
