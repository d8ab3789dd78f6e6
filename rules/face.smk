"""What is seen in the frames: landmarks, masks, blinks, poses, plate and layers.

`landmarks` writes its .lms files beside the frames, which changes their folder: every rule takes
clip.json as the handle of the frames, and the folder as ancient.
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
        "../envs/face.yaml"
    envmodules:
        *MODULES["face"],
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        options=flags("landmarks"),
        recipe=recipe("landmarks", after=[rules.frames]),
    message:
        "{wildcards.subject}: face mesh and 68 landmarks of every frame"
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
        "../envs/face.yaml"
    envmodules:
        *MODULES["face"],
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        options=flags("parsing"),
        recipe=recipe("parsing", after=[rules.landmarks]),
    message:
        "{wildcards.subject}: masks of head, neck, torso and background"
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
        "../envs/face.yaml"
    envmodules:
        *MODULES["face"],
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        options=flags("blink"),
        recipe=recipe("blink", after=[rules.landmarks]),
    message:
        "{wildcards.subject}: eye closure of every frame"
    shell:
        "talker blink --clip {input.clip:q} --landmarks {input.landmarks:q} --au {output.au:q}"
        " {params.options} > {log:q} 2>&1"


rule track:
    input:
        clip="<data>/{subject}/clip.json",
        landmarks="<data>/{subject}/landmarks.npz",
    output:
        params="<data>/{subject}/track_params.pt",
        train="<data>/{subject}/transforms_train.json",
        val="<data>/{subject}/transforms_val.json",
        report="<data>/{subject}/track_report.json",
        overlay="<data>/{subject}/track_overlay.mp4",
    log:
        "<logs>/{subject}/track.log",
    benchmark:
        "<benchmarks>/{subject}/track.tsv"
    conda:
        "../envs/face.yaml"
    envmodules:
        *MODULES["face"],
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        images=rules.frames.output.images,
        options=flags("track"),
        recipe=recipe("track", after=[rules.landmarks]),
    message:
        "{wildcards.subject}: head pose of every frame, focal length, face shape"
    shell:
        "talker track --clip {input.clip:q} --images {params.images:q}"
        " --landmarks {input.landmarks:q}"
        " --params {output.params:q} --train {output.train:q} --val {output.val:q}"
        " --report {output.report:q} --overlay {output.overlay:q} {params.options} > {log:q} 2>&1"


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
        "../envs/face.yaml"
    envmodules:
        *MODULES["face"],
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(20),
    params:
        options=flags("background"),
        recipe=recipe("background", after=[rules.parsing]),
    message:
        "{wildcards.subject}: the plate behind the person"
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
        "../envs/face.yaml"
    envmodules:
        *MODULES["face"],
    threads: 2
    resources:
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        options=flags("layers"),
        recipe=recipe("layers", after=[rules.background]),
    message:
        "{wildcards.subject}: layers of head and torso"
    shell:
        "talker layers --clip {input.clip:q} --images {input.images:q} --masks {input.masks:q}"
        " --plate {input.plate:q} --truth {output.truth:q} --torso {output.torso:q}"
        " {params.options} > {log:q} 2>&1"
