"""FeatureSpaces: an encoder and a dictionary whose features are scored, named and illustrated."""
