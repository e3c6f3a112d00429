"""Image-caption pairs from any of the usual layouts: `open.open_pairs` knows them all."""
