"""Speech encoders: one adapter file for each model, and what they share."""
