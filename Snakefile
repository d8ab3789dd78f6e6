"""From the video of a person talking to an avatar, its held-out video, metrics and report."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/media.smk"
include: "rules/face.smk"
include: "rules/avatar.smk"
include: "rules/render.smk"


localrules:
    all,
    prepare,


rule all:
    default_target: True
    input:
        expand(
            "results/{subject}/{file}",
            subject=SUBJECTS,
            file=["val.mp4", "metrics.json", "report.html"],
        ),
        [
            f"results/{subject}/novel/{name}.{kind}"
            for subject in SUBJECTS
            for name in speeches_of(subject)
            for kind in ("mp4", "json")
        ],


rule prepare:
    input:
        expand("data/{subject}/quality.json", subject=SUBJECTS),
