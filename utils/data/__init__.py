"""Images, feature maps and tokens on disk and in batches."""
