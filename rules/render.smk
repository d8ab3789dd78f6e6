"""Videos of the avatar, their metrics and the report.

On a single machine, these jobs share a GPU (`set-resources` in the profiles). On a cluster, a job
requests one.
"""


rule render:
    input:
        dataset=dataset_of,
        features=SPEECH_FEATURES,
        avatar="<results>/{subject}/avatar",
    output:
        **extra_outputs("<results>/{subject}/{split}"),
        video=report(
            "<results>/{subject}/{split}.mp4",
            caption="../workflow/report/video.rst",
            category="videos",
            labels={"subject": "{subject}", "says": "{split}"},
        ),
    log:
        "<logs>/{subject}/render_{split}.log",
    benchmark:
        "<benchmarks>/{subject}/render_{split}.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 4
    resources:
        mem_mb=scale_with_attempt(4000),
        runtime=scale_with_attempt(60),
        gpu=GPU,
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        extras=lambda wildcards, output: extra_flags(output),
        options=stage_options("render"),
        fingerprint=fingerprint("render", after=[rules.train]),
    message:
        "{wildcards.subject}: rendering the video {wildcards.split}.mp4"
    shell:
        "talker render --data {params.data:q} --avatar {input.avatar:q}"
        " --split {wildcards.split} --video {output.video:q} {params.extras} {params.options}"
        " > {log:q} 2>&1"


rule render_novel:
    input:
        dataset=dataset_of,
        features=SPEECH_FEATURES,
        avatar="<results>/{subject}/avatar",
        speech=NOVEL_FEATURES,
        wav="<data>/{subject}/novel/{name}/aud.wav",
        sound=speech_of,
    output:
        video=report(
            "<results>/{subject}/novel/{name}.mp4",
            caption="../workflow/report/novel.rst",
            category="videos",
            labels={"subject": "{subject}", "says": "{name}"},
        ),
    log:
        "<logs>/{subject}/novel/{name}/render.log",
    benchmark:
        "<benchmarks>/{subject}/novel/{name}/render.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 4
    resources:
        mem_mb=scale_with_attempt(4000),
        runtime=scale_with_attempt(60),
        gpu=GPU,
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        options=stage_options("render"),
        fingerprint=fingerprint("render", after=[rules.train, rules.novel_speech]),
    message:
        "{wildcards.subject}: rendering the new speech '{wildcards.name}'"
    shell:
        "talker render --data {params.data:q} --avatar {input.avatar:q}"
        " --speech {input.speech:q} --wav {input.wav:q} --sound {input.sound:q}"
        " --video {output.video:q} {params.options} > {log:q} 2>&1"


rule evaluate:
    input:
        dataset=dataset_of,
        features=SPEECH_FEATURES,
        avatar="<results>/{subject}/avatar",
    output:
        metrics=report(
            "<results>/{subject}/metrics.json",
            caption="../workflow/report/metrics.rst",
            category="metrics",
            labels={"subject": "{subject}"},
        ),
    log:
        "<logs>/{subject}/evaluate.log",
    benchmark:
        "<benchmarks>/{subject}/evaluate.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 8
    resources:
        mem_mb=scale_with_attempt(4000),
        runtime=scale_with_attempt(60),
        gpu=GPU,
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        options=stage_options("evaluate"),
        fingerprint=fingerprint("evaluate", after=[rules.train]),
    message:
        "{wildcards.subject}: evaluating the avatar on the held-out frames"
    shell:
        "talker evaluate --data {params.data:q} --avatar {input.avatar:q}"
        " --metrics {output.metrics:q} {params.options} > {log:q} 2>&1"


rule evaluate_novel:
    input:
        dataset=dataset_of,
        features=SPEECH_FEATURES,
        avatar="<results>/{subject}/avatar",
        video="<results>/{subject}/novel/{name}.mp4",
    output:
        metrics="<results>/{subject}/novel/{name}.json",
    log:
        "<logs>/{subject}/novel/{name}/evaluate.log",
    benchmark:
        "<benchmarks>/{subject}/novel/{name}/evaluate.tsv"
    conda:
        "../envs/avatar.yaml"
    envmodules:
        *ENV_MODULES["avatar"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(3000),
        runtime=scale_with_attempt(60),
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        options=stage_options("evaluate"),
        fingerprint=fingerprint("evaluate", after=[rules.render_novel]),
    message:
        "{wildcards.subject}: measuring how well the mouth follows the new speech '{wildcards.name}'"
    shell:
        "CUDA_VISIBLE_DEVICES= talker evaluate --data {params.data:q} --avatar {input.avatar:q}"
        " --video {input.video:q} --metrics {output.metrics:q} {params.options} > {log:q} 2>&1"


rule report:
    input:
        dataset=dataset_of,
        features=SPEECH_FEATURES,
        overlay="<data>/{subject}/track_overlay.mp4",
        avatar="<results>/{subject}/avatar",
        metrics="<results>/{subject}/metrics.json",
        video="<results>/{subject}/val.mp4",
        novel=lambda wildcards: novel_results(wildcards.subject),
    output:
        html=report(
            "<results>/{subject}/report.html",
            caption="../workflow/report/page.rst",
            category="pages",
            labels={"subject": "{subject}"},
        ),
    log:
        "<logs>/{subject}/report.log",
    benchmark:
        "<benchmarks>/{subject}/report.tsv"
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
        novel=lambda wildcards: RESULTS / wildcards.subject / "novel",
        benchmarks=lambda wildcards: BENCHMARKS / wildcards.subject,
        options=stage_options("report"),
        fingerprint=fingerprint("report", after=[rules.overlay, rules.render, rules.evaluate]),
    message:
        "{wildcards.subject}: writing the report"
    shell:
        "talker report --data {params.data:q} --avatar {input.avatar:q}"
        " --metrics {input.metrics:q} --video {input.video:q}"
        " --novel {params.novel:q} --benchmarks {params.benchmarks:q} --html {output.html:q}"
        " {params.options} > {log:q} 2>&1"
