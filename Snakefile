"""From the video of a person talking to an avatar, its held-out video, metrics and report."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


pathvars:
    data="data",


include: "rules/common.smk"
include: "rules/media.smk"
include: "rules/face.smk"
include: "rules/avatar.smk"
include: "rules/render.smk"


rule all:
    default_target: True
    input:
        [targets_of(subject) for subject in SUBJECTS],
    localrule: True


rule prepare:
    input:
        expand("<data>/{subject}/quality.json", subject=SUBJECTS),
        expand(f"<data>/{{subject}}/aud_{ENCODER}.npy", subject=SUBJECTS),
    localrule: True


onstart:
    check_preset()


onsuccess:
    say_outcome(log)


onerror:
    say_outcome(log)
