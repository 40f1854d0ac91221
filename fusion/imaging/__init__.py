"""What is seen in pixels: structures segmented, measured and found."""
