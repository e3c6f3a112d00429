"""Text-controlled image generation by edits of features."""
