"""Definitions of all metrics, as written to metrics.json and to the report."""

DEFINITIONS = {
    "psnr": (
        "Peak signal-to-noise ratio of the whole frame in dB, mean over frames. Two images are "
        "compared: the rendered head and the real head, both over the torso and background of the "
        "real frame."
    ),
    "ssim": (
        "Structural similarity (SSIM) of the same two images, with an 11 x 11 Gaussian window of "
        "sigma 1.5."
    ),
    "psnr_head": (
        "PSNR in dB between the rendered frame and the unmodified real frame, inside the box "
        "of the head. This is the bounding box of the 68 landmarks, enlarged by 15 % on each "
        "side and by 45 % at the top."
    ),
    "ssim_head": "Mean of the SSIM map inside the box of the head.",
    "psnr_mouth": (
        "PSNR in dB between the rendered frame and the unmodified real frame, inside a square "
        "around the lips that is 1.5 times as wide as the lips."
    ),
    "ssim_mouth": "Mean of the SSIM map inside the square around the lips.",
    "lmd_mouth": (
        "Landmark distance of the mouth, in pixels of the rendered frame: the mean distance "
        "between the 20 mouth landmarks of the rendered and the real frame, after the mean of "
        "each set is subtracted. A frozen mouth also scores well on this metric."
    ),
    "lmd_mouth_relative": "The landmark distance of the mouth divided by the distance between the "
    "outer eye corners.",
    "mouth_correlation": (
        "Pearson correlation between the mouth openings of the rendered and the real frames. "
        "The mouth opening is the distance between the inner lips, divided by the distance "
        "between the outer eye corners."
    ),
    "mouth_std_ratio": (
        "Standard deviation of the rendered mouth opening, divided by that of the real one. A "
        "frozen mouth has 0, and the correct amplitude is 1."
    ),
    "best_lag_frames": (
        "Time shift in frames, from -12 to 12, at which the two mouth openings correlate best. "
        "A positive lag means that the rendered mouth is late."
    ),
    "eye_correlation": (
        "Pearson correlation between the eye aspect ratios of the rendered and the real "
        "frames. If these frames contain no blink, the value is noise."
    ),
    "eye_std_ratio": (
        "Standard deviation of the rendered eye aspect ratio, divided by that of the real one. "
        "If the eyes never blink, it is 0."
    ),
    "brow_correlation": (
        "Pearson correlation between the motion of the brows in the rendered and in the real "
        "frames. The motion is the distance of the brows from the eye corners, divided by the "
        "distance between the outer eye corners. It is measured in face meshes that are aligned, "
        "which removes most of the head motion. The part that is proportional to the eye closure "
        "is removed, because the detected brows move in blinks. If the real brows hardly move, the "
        "value is noise."
    ),
    "brow_std_ratio": (
        "Standard deviation of the rendered brow motion, divided by that of the real one. The "
        "correct amplitude is 1. Noise of the detector contributes to both."
    ),
    "head_shake": (
        "Jitter of the rendered head in pixels of the rendered frame. From one frame to the next, "
        "the optical flow of brows, nose and eye corners is measured in the rendered and in the "
        "real video. At each of these points, the two motions differ by a vector. The jitter of a "
        "frame is the length of the median of these vectors. The value is the root mean square of "
        "the jitter of all frames."
    ),
    "head_shake_5": "The same jitter for the motion over 5 frames.",
    "faces_lost": "Number of rendered frames in which no face was detected.",
}
"""Metrics of a rendering of the held-out frames, in the order of the tables."""

SYNC_DEFINITIONS = {
    "correlation": (
        "Correlation between the mouth shape in the video and the shape predicted from the "
        "audio (mean over opening, width and jaw). The predictor is a ridge regression. It is "
        "fitted on the real training frames. It uses speech features that do not drive the "
        "avatar; `features` names them. This score is not SyncNet's Sync-C."
    ),
    "null_mean": (
        "Mean of the null distribution: the same correlation, computed with the audio shifted "
        "circularly by different durations of at least 1 s. `null_sd` is its standard deviation. "
        "`null_share` is the fraction of all shifts, including a shift of 0, whose correlation is "
        "at least as high as that of the unshifted audio. At least 80 frames are needed."
    ),
    "best_lag": (
        "Time shift in frames, from -12 to 12, at which the correlation is highest "
        "(`best_correlation`). A positive lag means that the mouth is late."
    ),
    "real": "The same numbers for the real held-out video.",
}
"""Numbers of the sync score of a video."""

RESPONSE_DEFINITIONS = {
    "blink_rank_correlation": (
        "Spearman correlation between six input values of the eye closure, from 0 to 1, and how "
        "far the rendered eyes are closed, with all other inputs unchanged. It is 1 if the eyes "
        "close further with every increase of the input."
    ),
    "blink_closing": (
        "Difference between the rendered eye aspect ratios at the closures 0 and 1, divided by the "
        "difference between open and closed eyes in the recording. It is missing if the training "
        "frames contain no blink."
    ),
    "brow_rank_correlation": (
        "Spearman correlation between six input values of the brows, from lowered to raised, and "
        "the distance of the rendered brows from the eyes, with all other inputs unchanged. It is "
        "1 if the brows rise with every increase of the input."
    ),
    "brow_lifting": (
        "Difference between the rendered distances of the brows at the highest and the lowest "
        "input, divided by the same difference in the recording. These inputs are the means of the "
        "8 training frames with the highest and with the lowest brows. This ratio and the "
        "Spearman correlation are missing if the dataset does not contain the motion of the brows."
    ),
    "silence_opening": (
        "Mean mouth opening of the avatar in silence. 0 is the mean opening of the 10 % of real "
        "held-out frames in which the mouth is least open, and 1 is the mean opening of all real "
        "held-out frames."
    ),
    "pose_mouth_correlation": (
        "Correlation between the mouth openings of two renderings of the same speech, one with the "
        "recorded head poses and one with these poses in reverse order. It is 1 if the mouth does "
        "not depend on the pose."
    ),
    "pose_mouth_std_ratio": (
        "Standard deviation of the mouth opening with the reversed poses, divided by that with the "
        "recorded ones."
    ),
}
"""How the avatar responds when one of its inputs changes alone."""

SILENCE_DEFINITIONS = {
    "silent_frames": "Number of silent frames that are at least 0.2 s away from any speech.",
    "opening_silent": (
        "Mean mouth opening in these frames. The mouth opening is the distance between the "
        "inner lips, divided by the distance between the outer eye corners."
    ),
    "opening_closed": (
        "Mean opening of the 10 % of real training frames in which the mouth is least open. It is "
        "measured at the avatar's image size."
    ),
    "opening_mean": "Mean opening of all real training frames.",
    "chatter": "Standard deviation of the mouth opening in silence, divided by that in speech.",
}
"""Numbers that show what the mouth does in the pauses of new speech."""

CONTROLS = {
    "frozen_mouth": (
        "The avatar is driven by the mean of the training speech in every frame. If its "
        "mouth still moves, the motion comes from the head pose and the blinks."
    ),
    "shuffled_audio": (
        "The avatar is driven by the audio of other parts of the clip: the audio track is "
        "rotated by k/(K+1) of its length, for k = 1 .. K. Each value is the mean over these K "
        "renderings, except for the lag, which is the median."
    ),
}
"""Control renderings, which look like the avatar but do not follow the speech. The avatar must
outperform them."""

DETECTOR_FLOOR = (
    "The real frames are reduced to half their size, enlarged again, and measured like a "
    "rendering. The result is the error of the landmark detector itself."
)

NETWORK_METRICS = {
    "LPIPS": (
        "lpips",
        "Perceptual distance between the rendered head and the real head, both over the "
        "torso and background of the real frame, mean over frames.",
    ),
    "ST-LPIPS": (
        "stlpips",
        "Shift-tolerant perceptual distance between the same two images, mean over frames. Its "
        "values are not comparable with those of LPIPS.",
    ),
    "ST-LPIPS_mouth": (
        "stlpips",
        "ST-LPIPS between the mouth boxes of the rendered and the real frame, mean over frames.",
    ),
    "FID": (
        "inception",
        "Fréchet Inception distance between the rendered heads and the real heads of all frames, "
        "both over the torso and background of the real frames.",
    ),
    "CSIM": (
        "identity",
        "Cosine similarity between the identity embeddings of the rendered and the real "
        "face, mean over frames.",
    ),
    "Sync-C": ("syncnet", "Confidence of SyncNet over the longest sequence of consecutive frames."),
    "Sync-D": ("syncnet", "Distance of SyncNet over the same sequence."),
    "lmd_mouth_second": (
        "second_detector",
        "`lmd_mouth` measured by a second landmark detector, in pixels.",
    ),
    "mouth_correlation_second": (
        "second_detector",
        "`mouth_correlation` measured by the second landmark detector.",
    ),
}
"""Metrics of networks that the user provides: the option that names the file, and a definition."""
