"""Apps over a FeatureSpace, and the `mms` command."""
