"""Face analysis: landmarks, segmentation, blinks, shots, head poses, background and layers.

`landmarks` writes .lms files into the folder of frames, which changes its modification time.
Therefore rules depend on clip.json, which is written with the frames, and take the folder as
`ancient`.
"""


rule landmarks:
    input:
        clip="<data>/{subject}/clip.json",
        images=ancient("<data>/{subject}/ori_imgs"),
    output:
        landmarks="<data>/{subject}/landmarks.npz",
    log:
        "<logs>/{subject}/landmarks.log",
    benchmark:
        "<benchmarks>/{subject}/landmarks.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 8
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(30),
    params:
        options=stage_options("landmarks"),
        fingerprint=fingerprint("landmarks", after=[rules.frames]),
    message:
        "{wildcards.subject}: detecting the face mesh and 68 landmarks in every frame"
    shell:
        "talker landmarks --clip {input.clip:q} --images {input.images:q}"
        " --landmarks {output.landmarks:q} {params.options} > {log:q} 2>&1"


rule parsing:
    input:
        clip="<data>/{subject}/clip.json",
        images=ancient("<data>/{subject}/ori_imgs"),
        landmarks="<data>/{subject}/landmarks.npz",
    output:
        masks=directory("<data>/{subject}/parsing"),
    log:
        "<logs>/{subject}/parsing.log",
    benchmark:
        "<benchmarks>/{subject}/parsing.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 8
    resources:
        mem_mb=scale_with_attempt(3000),
        runtime=scale_with_attempt(30),
    params:
        options=stage_options("parsing"),
        fingerprint=fingerprint("parsing", after=[rules.landmarks]),
    message:
        "{wildcards.subject}: segmenting head, neck, torso and background"
    shell:
        "talker parsing --clip {input.clip:q} --images {input.images:q}"
        " --landmarks {input.landmarks:q} --masks {output.masks:q}"
        " {params.options} > {log:q} 2>&1"


rule blink:
    input:
        clip="<data>/{subject}/clip.json",
        landmarks="<data>/{subject}/landmarks.npz",
    output:
        au="<data>/{subject}/au.csv",
    log:
        "<logs>/{subject}/blink.log",
    benchmark:
        "<benchmarks>/{subject}/blink.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(1000),
        runtime=scale_with_attempt(5),
    params:
        images=rules.frames.output.images,
        options=stage_options("blink"),
        fingerprint=fingerprint("blink", after=[rules.landmarks]),
    message:
        "{wildcards.subject}: measuring eye closure in every frame"
    shell:
        "talker blink --clip {input.clip:q} --images {params.images:q}"
        " --landmarks {input.landmarks:q} --au {output.au:q} {params.options} > {log:q} 2>&1"


rule shots:
    input:
        clip="<data>/{subject}/clip.json",
        landmarks="<data>/{subject}/landmarks.npz",
    output:
        shots="<data>/{subject}/shots.npz",
    log:
        "<logs>/{subject}/shots.log",
    benchmark:
        "<benchmarks>/{subject}/shots.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 2
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(20),
    params:
        images=rules.frames.output.images,
        options=stage_options("shots"),
        fingerprint=fingerprint("shots", after=[rules.landmarks]),
    message:
        "{wildcards.subject}: finding cuts and frames without a usable face"
    shell:
        "talker shots --clip {input.clip:q} --images {params.images:q}"
        " --landmarks {input.landmarks:q} --shots {output.shots:q} {params.options} > {log:q} 2>&1"


rule fit:
    input:
        clip="<data>/{subject}/clip.json",
        landmarks="<data>/{subject}/landmarks.npz",
        shots="<data>/{subject}/shots.npz",
    output:
        fit="<data>/{subject}/fit.npz",
    log:
        "<logs>/{subject}/fit.log",
    benchmark:
        "<benchmarks>/{subject}/fit.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 1
    resources:
        mem_mb=scale_with_attempt(3000),
        runtime=scale_with_attempt(20),
    params:
        options=stage_options("fit"),
        fingerprint=fingerprint("fit", after=[rules.shots]),
    message:
        "{wildcards.subject}: fitting the head, the focal length and the poses to the landmarks"
    shell:
        "talker fit --clip {input.clip:q} --landmarks {input.landmarks:q} --shots {input.shots:q}"
        " --fit {output.fit:q} {params.options} > {log:q} 2>&1"


rule track:
    input:
        clip="<data>/{subject}/clip.json",
        landmarks="<data>/{subject}/landmarks.npz",
        fit="<data>/{subject}/fit.npz",
    output:
        params="<data>/{subject}/track_params.pt",
        train="<data>/{subject}/transforms_train.json",
        val="<data>/{subject}/transforms_val.json",
        report="<data>/{subject}/track_report.json",
    log:
        "<logs>/{subject}/track.log",
    benchmark:
        "<benchmarks>/{subject}/track.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 4
    resources:
        mem_mb=scale_with_attempt(3000),
        runtime=scale_with_attempt(30),
    params:
        images=rules.frames.output.images,
        options=stage_options("track"),
        fingerprint=fingerprint("track", after=[rules.fit]),
    message:
        "{wildcards.subject}: estimating the head poses from landmarks and optical flow"
    shell:
        "talker track --clip {input.clip:q} --images {params.images:q}"
        " --landmarks {input.landmarks:q} --fit {input.fit:q}"
        " --params {output.params:q} --train {output.train:q} --val {output.val:q}"
        " --report {output.report:q} {params.options} > {log:q} 2>&1"


# A refusal by `check` refers to the video. Jobs with a higher priority start before `check`.
rule overlay:
    input:
        clip="<data>/{subject}/clip.json",
        landmarks="<data>/{subject}/landmarks.npz",
        params="<data>/{subject}/track_params.pt",
    output:
        video="<data>/{subject}/track_overlay.mp4",
    log:
        "<logs>/{subject}/overlay.log",
    benchmark:
        "<benchmarks>/{subject}/overlay.tsv"
    priority: 1
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 4
    resources:
        mem_mb=scale_with_attempt(2000),
        runtime=scale_with_attempt(20),
    params:
        images=rules.frames.output.images,
        options=stage_options("overlay"),
        fingerprint=fingerprint("overlay", after=[rules.track]),
    message:
        "{wildcards.subject}: drawing the tracked head over the frames"
    shell:
        "talker overlay --clip {input.clip:q} --images {params.images:q}"
        " --landmarks {input.landmarks:q} --params {input.params:q} --video {output.video:q}"
        " {params.options} > {log:q} 2>&1"


rule background:
    input:
        clip="<data>/{subject}/clip.json",
        images=ancient("<data>/{subject}/ori_imgs"),
        masks="<data>/{subject}/parsing",
    output:
        plate="<data>/{subject}/bc.jpg",
    log:
        "<logs>/{subject}/background.log",
    benchmark:
        "<benchmarks>/{subject}/background.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 2
    resources:
        mem_mb=scale_with_attempt(3000),
        runtime=scale_with_attempt(20),
    params:
        options=stage_options("background"),
        fingerprint=fingerprint("background", after=[rules.parsing]),
    message:
        "{wildcards.subject}: reconstructing the background behind the person"
    shell:
        "talker background --clip {input.clip:q} --images {input.images:q}"
        " --masks {input.masks:q} --plate {output.plate:q} {params.options} > {log:q} 2>&1"


rule layers:
    input:
        clip="<data>/{subject}/clip.json",
        images=ancient("<data>/{subject}/ori_imgs"),
        masks="<data>/{subject}/parsing",
        plate="<data>/{subject}/bc.jpg",
    output:
        truth=directory("<data>/{subject}/gt_imgs"),
        torso=directory("<data>/{subject}/torso_imgs"),
    log:
        "<logs>/{subject}/layers.log",
    benchmark:
        "<benchmarks>/{subject}/layers.tsv"
    conda:
        "../envs/prepare.yaml"
    envmodules:
        *ENV_MODULES["prepare"],
    threads: 8
    resources:
        mem_mb=scale_with_attempt(3000),
        runtime=scale_with_attempt(30),
    params:
        options=stage_options("layers"),
        fingerprint=fingerprint("layers", after=[rules.background]),
    message:
        "{wildcards.subject}: compositing the head and torso layers"
    shell:
        "talker layers --clip {input.clip:q} --images {input.images:q} --masks {input.masks:q}"
        " --plate {input.plate:q} --truth {output.truth:q} --torso {output.torso:q}"
        " {params.options} > {log:q} 2>&1"
