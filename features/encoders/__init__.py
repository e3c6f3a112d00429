"""Models that embed images and texts: loaded by id, or trained here."""
