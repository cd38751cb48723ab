"""Training: data, the resumable loop, export to released weights, plots."""
