"""The gate, in three stages that read the dataset folder, and training, which reads only that folder.

`verify` stops at faults of the files, `lipsync` measures how well sound and mouth go together, and
`check` refuses unsuitable clips.

Checkpoints are not declared as an output, because Snakemake deletes the outputs of a failed job.
An interrupted training continues from its last checkpoint.
"""


rule verify:
    input:
        dataset=dataset_of,
    output:
        verified="<data>/{subject}/verified.json",
    log:
        "<logs>/{subject}/verify.log",
    benchmark:
        "<benchmarks>/{subject}/verify.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 8
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(10),
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        options=stage_options("verify"),
        fingerprint=fingerprint(
            "verify",
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
        "{wildcards.subject}: verifying that the dataset is complete and consistent"
    shell:
        "talker verify --data {params.data:q} --verified {output.verified:q}"
        " {params.options} > {log:q} 2>&1"


rule lipsync:
    input:
        sound="<data>/{subject}/aud.wav",
        verified="<data>/{subject}/verified.json",
    output:
        lipsync="<data>/{subject}/lipsync.json",
    log:
        "<logs>/{subject}/lipsync.log",
    benchmark:
        "<benchmarks>/{subject}/lipsync.tsv"
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
        options=stage_options("lipsync"),
        fingerprint=fingerprint("lipsync", after=[rules.verify]),
    message:
        "{wildcards.subject}: measuring how well the mouth moves with the sound"
    shell:
        "talker lipsync --data {params.data:q} --lipsync {output.lipsync:q}"
        " {params.options} > {log:q} 2>&1"


rule check:
    input:
        dataset=dataset_of,
        verified="<data>/{subject}/verified.json",
        lipsync="<data>/{subject}/lipsync.json",
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
        fingerprint=fingerprint("check", after=[rules.verify, rules.lipsync]),
    message:
        "{wildcards.subject}: judging whether the dataset can give a good avatar"
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
        " || {{ cat {params.source:q} > {params.record:q} && sync {params.record:q}; }}; }}"
