"""De-biasing a model by editing embeddings: nothing is trained again.

Features are chosen by their association with the factor that should not matter, and how many of
them to take out, and how, on a validation split. The comparison with the baselines is on a test
set that neither has seen.
"""
