"""Definitions of all metrics, as written to metrics.json and to the report."""

DEFINITIONS = {
    "psnr": "Peak signal-to-noise ratio of the whole frame in dB, mean over frames. The rendered "
    "head over the torso and background of the real frame is compared with the real head (by its "
    "parsing mask) over the same torso and background.",
    "ssim": "Structural similarity of the same pair of images, with an 11 x 11 Gaussian window of "
    "sigma 1.5.",
    "psnr_head": "PSNR in dB against the unmodified real frame, inside the bounding box of the 68 "
    "landmarks enlarged by 15 % on each side and 45 % at the top.",
    "ssim_head": "Mean of the SSIM map inside that box.",
    "psnr_mouth": "PSNR in dB against the unmodified real frame, inside a square around the lips "
    "that is 1.5 times as wide as they are.",
    "ssim_mouth": "Mean of the SSIM map inside that square.",
    "lmd_mouth": "Landmark distance of the mouth in pixels of the rendered size: mean distance "
    "between the 20 mouth landmarks detected in the rendered and in the real frame, after each set "
    "is centered on its mean. A frozen mouth scores well on this metric.",
    "lmd_mouth_relative": "The landmark distance of the mouth divided by the distance between the "
    "outer eye corners.",
    "mouth_correlation": "Pearson correlation between the mouth opening (distance of the inner "
    "lips divided by that of the outer eye corners) of the rendered and of the real frames.",
    "mouth_std_ratio": "Standard deviation of the rendered mouth opening divided by that of the "
    "real one: 0 is a frozen mouth, 1 the correct amplitude.",
    "best_lag_frames": "Shift in frames, within 12, at which the mouth openings correlate best. A "
    "positive lag means that the rendered mouth is late.",
    "eye_correlation": "Pearson correlation between the eye aspect ratios of the rendered and of "
    "the real frames. Without a blink among them it is noise.",
    "eye_std_ratio": "Standard deviation of the rendered eye aspect ratio divided by that of the "
    "real one: 0 means that the eyes never blink.",
    "head_shake": "Jitter of the rendered head in pixels of the rendered size: how far its motion "
    "from one frame to the next differs from that of the real head (optical flow of brows, nose "
    "and eye corners, median over the points, root mean square over the frames).",
    "head_shake_5": "The same over 5 frames.",
    "faces_lost": "Number of rendered frames in which no face was detected.",
}
"""Metrics of a rendering of the held-out frames, in the order of the tables."""

SYNC_DEFINITIONS = {
    "correlation": "Correlation between the observed mouth shape and the shape predicted from the "
    "audio (mean over opening, width and jaw). The predictor is a ridge regression fitted on the "
    "real training frames, from features that do not drive the avatar (`features`). This is not "
    "SyncNet's Sync-C.",
    "null_mean": "Null distribution: mean of the same correlation with the audio circularly "
    "shifted by at least 1 s; `null_sd` is its standard deviation, and `null_share` the fraction "
    "of shifts, counting the true position as one, that score at least as high. Needs at least 80 "
    "frames.",
    "best_lag": "Shift in frames, within 12, at which the correlation is highest "
    "(`best_correlation`). A positive lag means that the mouth is late.",
    "real": "The same numbers for the real held-out video.",
}
"""Numbers of the sync score of a video."""

SILENCE_DEFINITIONS = {
    "silent_frames": "Number of frames inside pauses, at least 0.2 s away from any speech.",
    "opening_silent": "Mean mouth opening in those frames (distance of the inner lips divided by "
    "that of the outer eye corners).",
    "opening_closed": (
        "Mean opening of the 10 % of real training frames in which the mouth is least open, "
        "detected at the avatar's image size."
    ),
    "opening_mean": "Mean opening of all real training frames.",
    "chatter": "Standard deviation of the opening in silence divided by that in speech.",
}
"""Numbers that show what the mouth does in the pauses of new speech."""

CONTROLS = {
    "frozen_mouth": (
        "The avatar driven by the mean of the training speech in every frame. Any motion that its "
        "mouth still has follows the head pose and the blinks."
    ),
    "shuffled_audio": "The avatar driven by the audio of other parts of the clip: the audio track "
    "is rotated by k/(K+1) of its length for k = 1 .. K. Every number is the mean over these "
    "renderings, except the lag, which is their median.",
}
"""Renderings that an avatar has to beat, because they look alike but do not talk."""

DETECTOR_FLOOR = (
    "The real frames, halved in size and enlarged again, measured like a rendering: the noise of "
    "the landmark detector itself."
)

NETWORK_METRICS = {
    "LPIPS": (
        "lpips",
        "Perceptual distance between the rendered head over the torso and background of the real "
        "frame and the real head over the same, mean over frames.",
    ),
    "FID": ("inception", "Fréchet Inception distance between the same two sets of frames."),
    "CSIM": (
        "identity",
        "Cosine similarity of the identity embeddings of the rendered and the real face, mean over "
        "frames.",
    ),
    "Sync-C": ("syncnet", "Confidence of SyncNet over the longest stretch without a gap."),
    "Sync-D": ("syncnet", "Distance of SyncNet over the same stretch."),
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
