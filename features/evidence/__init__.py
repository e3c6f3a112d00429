"""Evidence: which parts of a picture and which words of a caption a feature, or a prediction, rests
on, with its sign."""
