"""The gate of the dataset folder, and the training that needs nothing but that folder.

Checkpoints are no declared output: a failed job loses those, and a killed training goes on where
it was.
"""


rule check:
    input:
        clip="<data>/{subject}/clip.json",
        images=ancient("<data>/{subject}/ori_imgs"),
        wav="<data>/{subject}/aud.wav",
        landmarks="<data>/{subject}/landmarks.npz",
        masks="<data>/{subject}/parsing",
        au="<data>/{subject}/au.csv",
        params="<data>/{subject}/track_params.pt",
        report="<data>/{subject}/track_report.json",
        train="<data>/{subject}/transforms_train.json",
        val="<data>/{subject}/transforms_val.json",
        plate="<data>/{subject}/bc.jpg",
        truth="<data>/{subject}/gt_imgs",
        torso="<data>/{subject}/torso_imgs",
    output:
        quality="<data>/{subject}/quality.json",
    log:
        "<logs>/{subject}/check.log",
    benchmark:
        "<benchmarks>/{subject}/check.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *MODULES["avatar"],
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        data=lambda wildcards, input: Path(input.clip).parent,
        options=flags("check"),
        recipe=recipe("check", after=[rules.audio, rules.blink, rules.track, rules.layers]),
    message:
        "{wildcards.subject}: is the dataset complete and consistent?"
    shell:
        "talker check --data {params.data:q} --quality {output.quality:q}"
        " {params.options} > {log:q} 2>&1"


rule train:
    input:
        dataset=rules.check.input,
        features=rules.speech.output.features,
        quality="<data>/{subject}/quality.json",
    output:
        avatar=directory("<results>/{subject}/avatar"),
    log:
        "<logs>/{subject}/train.log",
    benchmark:
        "<benchmarks>/{subject}/train.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *MODULES["avatar"],
    threads: 16
    resources:
        mem_mb=growing(6000),
        runtime=growing(720),
        gpu=GPU,
    params:
        data=lambda wildcards, input: Path(input.quality).parent,
        checkpoints=lambda wildcards, output: Path(output.avatar).with_name("checkpoints"),
        options=flags("train"),
        recipe=recipe("train", after=[rules.check, rules.speech]),
    message:
        "{wildcards.subject}: train the avatar (follow it in {log})"
    shell:
        "talker train --data {params.data:q} --avatar {output.avatar:q}"
        " --checkpoints {params.checkpoints:q}"
        " {params.options} > {log:q} 2>&1"
