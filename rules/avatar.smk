"""The quality gate of the dataset folder, and training, which reads nothing but that folder.

Checkpoints are not declared as an output, because Snakemake deletes the outputs of a failed job.
An interrupted training continues from its last checkpoint.
"""


rule check:
    input:
        dataset=dataset_of,
    output:
        quality="<data>/{subject}/quality.json",
    log:
        "<logs>/{subject}/check.log",
    benchmark:
        "<benchmarks>/{subject}/check.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(10),
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        refused=lambda wildcards: DATA / wildcards.subject / "quality_refused.json",
        options=stage_options("check"),
        fingerprint=fingerprint(
            "check",
            after=[
                rules.audio,
                rules.parsing,
                rules.blink,
                rules.track,
                rules.background,
                rules.layers,
            ],
        ),
    message:
        "{wildcards.subject}: checking that the dataset is complete and consistent"
    shell:
        "talker check --data {params.data:q} --quality {output.quality:q}"
        " {params.options} > {log:q} 2>&1"
        " || {{ [ ! -e {output.quality:q} ] || mv {output.quality:q} {params.refused:q}; exit 1; }}"
        "; rm -f {params.refused:q}"
        "; sed -n 's/^warning: /{wildcards.subject}: warning: /p' {log:q} >&2"


rule train:
    input:
        dataset=dataset_of,
        features=SPEECH_FEATURES,
        quality="<data>/{subject}/quality.json",
        prior=speech_prior_of,
    output:
        avatar=directory("<results>/{subject}/avatar"),
    log:
        "<logs>/{subject}/train.log",
    benchmark:
        "<benchmarks>/{subject}/train.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 16
    resources:
        mem_mb=scale_with_attempt(6000),
        runtime=scale_with_attempt(720),
        gpu=GPU,
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        checkpoints=lambda wildcards, output: Path(output.avatar).with_name("checkpoints"),
        source=lambda wildcards: DATA / wildcards.subject / "source.txt",
        record=lambda wildcards, output: Path(output.avatar).with_name("source.txt"),
        options=stage_options("train"),
        fingerprint=fingerprint("train", after=[rules.check, rules.speech]),
    message:
        "{wildcards.subject}: training the avatar"
    shell:
        "talker train --data {params.data:q} --avatar {output.avatar:q}"
        " --checkpoints {params.checkpoints:q}"
        " {params.options} > {log:q} 2>&1"
        " && {{ [ ! -e {params.source:q} ]"
        " || {{ cp {params.source:q} {params.record:q} && sync {params.record:q}; }}; }}"
