"""Gradio demos of the apps; they hold no logic: `python -m demos.attributes`."""
