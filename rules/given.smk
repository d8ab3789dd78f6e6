"""Files that the user provided: the rules use them, and never replace or delete them.

Before Snakemake runs a job, it deletes the outputs of the job, including everything in output
folders. Therefore a job must not exist if the user provided one of its outputs: the wildcard
`subject` of its rule is constrained so that these outputs match no rule, and Snakemake treats them
as source files.
"""

import filecmp
import glob
import subprocess

from talker.core.ownership import content_of, foreign_files, foreign_outputs

GIVEN = {}
"""{path: text that changes with the content} of the outputs that the user provided."""
UNMADE = set()
"""Other outputs of the jobs that would write files in `GIVEN`; these jobs are never created."""


def jobs_with_outputs(job_rule):
    """Yield the outputs of those jobs of a rule that have at least one existing output."""
    patterns = [re.sub(r"\{(\w+)[^}]*\}", r"{\1}", str(output)) for output in job_rule.output]
    jobs = set()
    for output, pattern in zip(job_rule.output, patterns):
        parts = [glob.escape(part) for part in re.split(r"\{\w+\}", pattern)]
        for path in glob.iglob("*".join(parts)):
            if match := output.match(path):
                jobs.add(tuple(name.format(**match.groupdict()) for name in patterns))
    yield from jobs


def note_given_files(paths):
    """Add the outputs of a job that the user provided to `GIVEN`; return whether there are any."""
    given = foreign_outputs([Path(path) for path in paths]) if LOCAL else []
    GIVEN.update({str(path): content_of(path) for path in given})
    UNMADE.update({str(path) for path in paths} - set(GIVEN) if given else ())
    return bool(given)


def subjects_with_given_frames():
    """Yield the subjects whose frames the user provided without a clip.json."""
    for path in map(Path, sorted(GIVEN)):
        if path.name == "ori_imgs" and str(path.with_name("clip.json")) not in GIVEN:
            yield path.parent.name


def protect_given_files():
    """Constrain the wildcard `subject` of every rule, so that no job replaces files of the user."""
    for own in workflow.rules:
        outputs = [str(output) for output in own.output]
        if Path(own.snakefile).parent != RULES or not all("{subject" in path for path in outputs):
            continue
        taken = {path for job in jobs_with_outputs(own) if note_given_files(job) for path in job}
        root = "".join(outputs).partition("{subject")[0]
        tails = "|".join(re.escape(path.removeprefix(root)) for path in sorted(taken))
        subjects = f"(?!(?:{tails})$)[^/]+" if taken else "[^/]+"
        if own.name.endswith("adopt"):  # only for given frames without a clip.json
            subjects = "|".join(re.escape(name) for name in subjects_with_given_frames()) or "(?!)"
            UNMADE.difference_update(
                str(DATA / name / "clip.json") for name in subjects_with_given_frames()
            )
        own.set_wildcard_constraints(subject=subjects)
        own.update_wildcard_constraints()


def given_content(job_rule, wildcards):
    """Return the content of those outputs of a job that the user provided, or None."""
    values = {"split": "val", **wildcards}  # the report has no wildcard for the video that it shows
    outputs = [str(output).format_map(values) for output in job_rule.output] if GIVEN else []
    return [GIVEN[path] for path in outputs if path in GIVEN] or None


def log_given_files():
    """Log which files of the subjects are used as they are."""
    for subject in SUBJECTS if GIVEN and not workflow.remote_exec else ():
        for folder in (DATA / subject, RESULTS / subject):
            names = [
                path.removeprefix(f"{folder}/")
                for path in sorted(GIVEN)
                if folder in Path(path).parents
            ]
            if names:
                logger.info(
                    f"{folder} contains files that talker did not write and that are used as they are: "
                    f"{', '.join(names)}. If talker should write them itself, move your files to "
                    "another folder."
                )


def require_own_folders(jobs):
    """Stop if a folder that is about to be replaced contains files of the user."""
    folders = [Path(output) for job in jobs for output in job.output if output.is_directory]
    foreign = {folder: foreign_files(folder) for folder in folders if folder.exists()}
    lines = [
        f"  {folder}: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''} ({len(names)})"
        for folder, names in foreign.items()
        if names
    ]
    if lines:
        raise WorkflowError(
            "These folders would be replaced, but contain files that talker did not write:\n"
            + "\n".join(lines)
            + "\nNothing was changed. If talker should write these folders, move the files to another "
            "folder. If you run the same command again without moving them, talker uses the folders as "
            "they are."
        )


def checksum(file):
    """Return the POSIX checksum and the size of a file, as text."""
    with open(file, "rb") as content:
        return subprocess.run(
            ["cksum"], stdin=content, capture_output=True, text=True
        ).stdout.strip()


def read_source(folder):
    """Return the path and the checksum of the video that a folder was made from, or two Nones."""
    record = folder / "source.txt"
    path, _, recorded = (
        record.read_text(encoding="utf-8").partition("\n") if record.exists() else ("", "", "")
    )
    return path or None, recorded.strip() or None


def is_same_video(video, source, recorded):
    """Return whether a video is the one that a folder was made from; None if that is unknown."""
    if not Path(video).exists():
        return None
    if recorded:
        return checksum(video) == recorded
    return filecmp.cmp(video, source, shallow=False) if Path(source).exists() else None


@functools.cache
def find_video(subject):
    """Return the path of a subject's video.

    If its dataset was made from the same video at another path, that path is returned, because a
    new path would make Snakemake run everything again.

    Raises:
        UserError: the dataset or the avatar was made from another video.
    """
    sources = {
        folder: read_source(folder) if LOCAL else (None, None)
        for folder in (DATA / subject, RESULTS / subject)
    }
    recorded_path = sources[DATA / subject][0]
    if subject not in SUBJECTS:
        return recorded_path or str(DATA / subject / f"{subject}.mp4")
    video = SUBJECTS[subject].video
    for folder, (source, recorded) in sources.items():
        if source not in (None, video) and is_same_video(video, source, recorded) is False:
            raise UserError(
                f"subject '{subject}': {folder} was made from {source}, but {video} is another "
                "video. Give the new video another name (rename the file, or add a row to "
                f"{config['subjects']}), or move {DATA / subject} and {RESULTS / subject} to "
                "another folder."
            )
    same = recorded_path and is_same_video(video, *sources[DATA / subject])
    return recorded_path if same else video


def require_same_videos():
    """Stop, and list the subjects, if datasets were made from other videos."""
    complaints = []
    for subject in SUBJECTS:
        try:
            find_video(subject)
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise WorkflowError("\n".join(complaints))
