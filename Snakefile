"""Turn videos of people talking into avatars, with held-out videos, metrics and reports."""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


pathvars:
    data="data",


include: "rules/common.smk"
include: "rules/given.smk"
include: "rules/preflight.smk"
include: "rules/media.smk"
include: "rules/face.smk"
include: "rules/avatar.smk"
include: "rules/render.smk"


protect_given_files()
log_preset()
log_given_files()
require_same_videos()
require_known_targets()


rule all:
    default_target: True
    input:
        [targets_of(subject) for subject in SUBJECTS],
    localrule: True


rule prepare:
    input:
        expand("<data>/{subject}/quality.json", subject=SUBJECTS),
        expand("<data>/{subject}/track_overlay.mp4", subject=SUBJECTS),
        expand(SPEECH_FEATURES, subject=SUBJECTS),
    localrule: True


onstart:
    require_named_preset()
    require_gpu_for_torch()
    require_ffmpeg_for_extras()
    jobs = list(workflow.dag.needrun_jobs())
    require_own_folders(jobs)
    require_usable_videos(jobs)
    require_gpu_for_preset(jobs)
    require_disk_space(jobs)


onsuccess:
    report_outcome(log)


onerror:
    report_outcome(log)
