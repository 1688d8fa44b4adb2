"""What probabilities are worth: calibration, images of other classes, accuracy without labels."""
