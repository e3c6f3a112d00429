"""Gradio demos: `python -m demos`, or one alone as `python -m demos.steering`."""
