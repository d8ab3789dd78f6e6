"""Run the whole workflow on a synthetic person, without a video or a GPU.

talker demo
"""

from talker.tools.run import Config, run_workflow

VIDEO = "data/demo/demo.mp4"
"""Path of the video that the workflow renders for the demo, in the folder to write to."""


def main(*, config: Config = Config()) -> None:
    """Render a video of a synthetic person, train an avatar on it, and write videos and a report.

    Args:
        config: Options of `talker run`.
    """
    run_workflow([str(config.out / VIDEO)], config)
