"""Videos of the avatar, their measures and the report."""


rule render:
    input:
        dataset=rules.check.input,
        avatar="results/{subject}/avatar",
    output:
        video="results/{subject}/{split}.mp4",
    log:
        "logs/{subject}/render_{split}.log",
    benchmark:
        "benchmarks/{subject}/render_{split}.tsv"
    conda:
        "../envs/avatar.yaml"
    threads: 16
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=GPU,
    params:
        options=flags("render"),
        recipe=recipe("render", after=[rules.train]),
    message:
        "{wildcards.subject}: video of the '{wildcards.split}' part"
    shell:
        "talker render --data data/{wildcards.subject:q} --avatar {input.avatar:q}"
        " --split {wildcards.split} --video {output.video:q} {params.options} > {log:q} 2>&1"


rule render_novel:
    input:
        dataset=rules.check.input,
        avatar="results/{subject}/avatar",
        speech=rules.novel_speech.output.features,
        wav="data/{subject}/novel/{name}/aud.wav",
    output:
        video="results/{subject}/novel/{name}.mp4",
    log:
        "logs/{subject}/novel/{name}/render.log",
    benchmark:
        "benchmarks/{subject}/novel/{name}/render.tsv"
    conda:
        "../envs/avatar.yaml"
    threads: 16
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=GPU,
    params:
        options=flags("render"),
        recipe=recipe("render", after=[rules.train, rules.novel_speech]),
    message:
        "{wildcards.subject}: video of the novel speech '{wildcards.name}'"
    shell:
        "talker render --data data/{wildcards.subject:q} --avatar {input.avatar:q}"
        " --speech {input.speech:q} --wav {input.wav:q} --video {output.video:q}"
        " {params.options} > {log:q} 2>&1"


rule evaluate:
    input:
        dataset=rules.check.input,
        avatar="results/{subject}/avatar",
    output:
        metrics="results/{subject}/metrics.json",
    log:
        "logs/{subject}/evaluate.log",
    benchmark:
        "benchmarks/{subject}/evaluate.tsv"
    conda:
        "../envs/avatar.yaml"
    threads: 16
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=GPU,
    params:
        options=flags("evaluate"),
        recipe=recipe("evaluate", after=[rules.train]),
    message:
        "{wildcards.subject}: measure the avatar on the held-out part"
    shell:
        "talker evaluate --data data/{wildcards.subject:q} --avatar {input.avatar:q}"
        " --metrics {output.metrics:q} {params.options} > {log:q} 2>&1"


rule evaluate_novel:
    input:
        dataset=rules.check.input,
        avatar="results/{subject}/avatar",
        video="results/{subject}/novel/{name}.mp4",
    output:
        metrics="results/{subject}/novel/{name}.json",
    log:
        "logs/{subject}/novel/{name}/evaluate.log",
    benchmark:
        "benchmarks/{subject}/novel/{name}/evaluate.tsv"
    conda:
        "../envs/avatar.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        options=flags("evaluate"),
        recipe=recipe("evaluate", after=[rules.render_novel]),
    message:
        "{wildcards.subject}: does the mouth follow the novel speech '{wildcards.name}'?"
    shell:
        "talker evaluate --data data/{wildcards.subject:q} --avatar {input.avatar:q}"
        " --video {input.video:q} --metrics {output.metrics:q} {params.options} > {log:q} 2>&1"


rule report:
    input:
        dataset=rules.check.input,
        avatar="results/{subject}/avatar",
        metrics="results/{subject}/metrics.json",
        video="results/{subject}/val.mp4",
    output:
        html="results/{subject}/report.html",
    log:
        "logs/{subject}/report.log",
    benchmark:
        "benchmarks/{subject}/report.tsv"
    conda:
        "../envs/avatar.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        options=flags("report"),
        recipe=recipe("report", after=[rules.render, rules.evaluate]),
    message:
        "{wildcards.subject}: the report"
    shell:
        "talker report --data data/{wildcards.subject:q} --avatar {input.avatar:q}"
        " --metrics {input.metrics:q} --video {input.video:q}"
        " --benchmarks benchmarks/{wildcards.subject:q} --html {output.html:q}"
        " {params.options} > {log:q} 2>&1"
