"""Training the image encoder on the images alone, before it meets their texts."""
