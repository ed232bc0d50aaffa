"""Images: data sets by name, the embedded sample, batches."""
