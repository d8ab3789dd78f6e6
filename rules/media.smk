"""The demo's video, example videos, the frames and audio of a video, and the speech features."""

if not note_given_files([DATA / "demo" / name for name in ("demo.mp4", "truth.npz")]):

    rule synthesize:
        input:
            speech=demo_file("speech.wav"),
            timings=demo_file("timings.json"),
        output:
            video="<data>/demo/demo.mp4",
            truth="<data>/demo/truth.npz",
        log:
            "<logs>/demo/synthesize.log",
        benchmark:
            "<benchmarks>/demo/synthesize.tsv"
        conda:
            "../envs/prepare.yaml"
        envmodules:
            *ENV_MODULES["prepare"],
        threads: 2
        resources:
            mem_mb=scale_with_attempt(2000),
            runtime=scale_with_attempt(10),
        params:
            options=stage_options("synthesize"),
            fingerprint=fingerprint("synthesize"),
        message:
            "demo: rendering a synthetic talking person with known ground truth"
        shell:
            "talker synthesize --speech {input.speech:q} --timings {input.timings:q}"
            " --video {output.video:q} --truth {output.truth:q} {params.options} > {log:q} 2>&1"


if config.get("example") and not note_given_files([example_video(config["example"])]):

    rule fetch_example:
        output:
            video=str(example_video(config["example"])),
        log:
            f"<logs>/{config['example']}/fetch_example.log",
        localrule: True
        conda:
            "../envs/prepare.yaml"
        envmodules:
            *ENV_MODULES["prepare"],
        params:
            name=config["example"],
        message:
            "downloading the example video '{params.name}'"
        shell:
            "talker weights fetch {params.name} --to {output.video:q} > {log:q} 2>&1"


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
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 4
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(30),
    params:
        source=lambda wildcards, output: Path(output.clip).with_name("source.txt"),
        options=stage_options("frames"),
        fingerprint=fingerprint("frames"),
    message:
        "{wildcards.subject}: extracting frames at 25 fps, cropped around the face"
    shell:
        "talker frames --video {input.video:q} --clip {output.clip:q} --images {output.images:q}"
        " {params.options} > {log:q} 2>&1"
        ' && printf "%s\\n" {input.video:q} "$(cksum < {input.video:q})" > {params.source:q}'
        " && sync {params.source:q}"


# given.smk does not constrain the wildcards of files in a bucket, where users provide no frames.
ruleorder: frames > adopt


rule adopt:
    input:
        images=ancient("<data>/{subject}/ori_imgs"),
    output:
        clip="<data>/{subject}/clip.json",
    log:
        "<logs>/{subject}/adopt.log",
    benchmark:
        "<benchmarks>/{subject}/adopt.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(10),
    params:
        data=lambda wildcards: DATA / wildcards.subject,
        fingerprint=fingerprint("adopt"),
    message:
        "{wildcards.subject}: adopting the dataset of another program"
    shell:
        "talker adopt --data {params.data:q} --clip {output.clip:q} > {log:q} 2>&1"


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
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(1000),
        runtime=scale_with_attempt(10),
    params:
        options=stage_options("audio"),
        fingerprint=fingerprint("audio", after=[rules.frames]),
    message:
        "{wildcards.subject}: extracting the audio at 16 kHz, cut to the length of the frames"
    shell:
        "talker audio --source {input.source:q} --clip {input.clip:q} --wav {output.wav:q}"
        " --train {output.train:q} --novel {output.novel:q} {params.options} > {log:q} 2>&1"


rule speech:
    input:
        wav="<data>/{subject}/aud.wav",
        clip="<data>/{subject}/clip.json",
        scores=deepspeech_scores("<data>/{subject}"),
    output:
        statistics=SPEECH_STATISTICS,
        features=SPEECH_FEATURES,
    log:
        "<logs>/{subject}/speech.log",
    benchmark:
        "<benchmarks>/{subject}/speech.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(20),
    params:
        options=stage_options("speech"),
        fingerprint=fingerprint("speech", after=[rules.audio]),
    message:
        "{wildcards.subject}: extracting speech features, one window per frame"
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
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(1000),
        runtime=scale_with_attempt(10),
    params:
        options=stage_options("audio"),
        fingerprint=fingerprint("audio"),
    message:
        "{wildcards.subject}: extracting the audio of the new speech '{wildcards.name}'"
    shell:
        "talker audio --source {input.source:q} --wav {output.wav:q}"
        " {params.options} > {log:q} 2>&1"


rule novel_speech:
    input:
        wav="<data>/{subject}/novel/{name}/aud.wav",
        statistics=SPEECH_STATISTICS,
        scores=deepspeech_scores("<data>/{subject}/novel/{name}"),
    output:
        features=NOVEL_FEATURES,
    log:
        "<logs>/{subject}/novel/{name}/speech.log",
    benchmark:
        "<benchmarks>/{subject}/novel/{name}/speech.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(20),
    params:
        options=stage_options("speech"),
        fingerprint=fingerprint("speech", after=[rules.novel_audio, rules.speech]),
    message:
        "{wildcards.subject}: extracting speech features of the new speech '{wildcards.name}'"
    shell:
        "talker speech --wav {input.wav:q} --statistics {input.statistics:q}"
        " --features {output.features:q} {params.options} > {log:q} 2>&1"
