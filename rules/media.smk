"""The demo's video, the frames and the sound of a video, the sound of novel speech."""


rule synthesize:
    input:
        speech="demo/speech.wav",
        timings="demo/timings.json",
    output:
        video="<data>/demo/demo.mp4",
        truth="<data>/demo/truth.npz",
    log:
        "<logs>/demo/synthesize.log",
    benchmark:
        "<benchmarks>/demo/synthesize.tsv"
    conda:
        "../envs/media.yaml"
    envmodules:
        *MODULES["media"],
    threads: 2
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        options=flags("synthesize"),
        recipe=recipe("synthesize"),
    message:
        "demo: a synthetic talking person, with its exact truth"
    shell:
        "talker synthesize --speech {input.speech:q} --timings {input.timings:q}"
        " --video {output.video:q} --truth {output.truth:q} {params.options} > {log:q} 2>&1"


rule frames:
    input:
        video=video_of,
    output:
        clip="<data>/{subject}/clip.json",
        images=directory("<data>/{subject}/ori_imgs"),
    log:
        "<logs>/{subject}/frames.log",
    benchmark:
        "<benchmarks>/{subject}/frames.tsv"
    conda:
        "../envs/media.yaml"
    envmodules:
        *MODULES["media"],
    threads: 2
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        source=lambda wildcards, output: Path(output.clip).with_name("source.txt"),
        options=flags("frames"),
        recipe=recipe("frames"),
    message:
        "{wildcards.subject}: frames at 25 fps, cropped around the face"
    shell:
        "talker frames --video {input.video:q} --clip {output.clip:q} --images {output.images:q}"
        " {params.options} > {log:q} 2>&1 && printf '%s' {input.video:q} > {params.source:q}"


rule audio:
    input:
        source=video_of,
        clip="<data>/{subject}/clip.json",
    output:
        wav="<data>/{subject}/aud.wav",
        train="<data>/{subject}/aud_train.wav",
        novel="<data>/{subject}/aud_novel.wav",
    log:
        "<logs>/{subject}/audio.log",
    benchmark:
        "<benchmarks>/{subject}/audio.tsv"
    conda:
        "../envs/media.yaml"
    envmodules:
        *MODULES["media"],
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        options=flags("audio"),
        recipe=recipe("audio", after=[rules.frames]),
    message:
        "{wildcards.subject}: sound at 16 kHz, as long as the frames"
    shell:
        "talker audio --source {input.source:q} --clip {input.clip:q} --wav {output.wav:q}"
        " --train {output.train:q} --novel {output.novel:q} {params.options} > {log:q} 2>&1"


rule speech:
    input:
        wav="<data>/{subject}/aud.wav",
        clip="<data>/{subject}/clip.json",
        scores=scores_in("<data>/{subject}"),
    output:
        statistics=f"<data>/{{subject}}/aud_{ENCODER}.npz",
        features=f"<data>/{{subject}}/aud_{ENCODER}.npy",
    log:
        "<logs>/{subject}/speech.log",
    benchmark:
        "<benchmarks>/{subject}/speech.tsv"
    conda:
        "../envs/media.yaml"
    envmodules:
        *MODULES["media"],
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        options=flags("speech"),
        recipe=recipe("speech", after=[rules.audio]),
    message:
        "{wildcards.subject}: speech features, a window for every frame"
    shell:
        "talker speech --wav {input.wav:q} --clip {input.clip:q}"
        " --statistics {output.statistics:q} --features {output.features:q}"
        " {params.options} > {log:q} 2>&1"


rule novel_audio:
    input:
        source=speech_of,
    output:
        wav="<data>/{subject}/novel/{name}/aud.wav",
    log:
        "<logs>/{subject}/novel/{name}/audio.log",
    benchmark:
        "<benchmarks>/{subject}/novel/{name}/audio.tsv"
    conda:
        "../envs/media.yaml"
    envmodules:
        *MODULES["media"],
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        options=flags("audio"),
        recipe=recipe("audio"),
    message:
        "{wildcards.subject}: sound of the novel speech '{wildcards.name}'"
    shell:
        "talker audio --source {input.source:q} --wav {output.wav:q}"
        " {params.options} > {log:q} 2>&1"


rule novel_speech:
    input:
        wav="<data>/{subject}/novel/{name}/aud.wav",
        statistics=rules.speech.output.statistics,
        scores=scores_in("<data>/{subject}/novel/{name}"),
    output:
        features=f"<data>/{{subject}}/novel/{{name}}/aud_{ENCODER}.npy",
    log:
        "<logs>/{subject}/novel/{name}/speech.log",
    benchmark:
        "<benchmarks>/{subject}/novel/{name}/speech.tsv"
    conda:
        "../envs/media.yaml"
    envmodules:
        *MODULES["media"],
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        options=flags("speech"),
        recipe=recipe("speech", after=[rules.novel_audio, rules.speech]),
    message:
        "{wildcards.subject}: features of the novel speech '{wildcards.name}'"
    shell:
        "talker speech --wav {input.wav:q} --statistics {input.statistics:q}"
        " --features {output.features:q} {params.options} > {log:q} 2>&1"
