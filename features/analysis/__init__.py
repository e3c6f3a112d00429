"""Questions put to FeatureSpaces: searching, matching, comparing, drift, concepts."""
