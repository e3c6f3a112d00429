"""De-biasing a model: edits of its embeddings, or other weights.

validation.py  the rule by which every method's strength is chosen
choosing.py    features, by their association with the factor that should not matter
erasure.py     mean difference and LEACE, in closed form
retraining.py  the probe fitted again: reweighted, or on as many samples of each group
baselines.py   what features are compared with, each with its strength
comparison.py  what each method does on a test set that none has seen
debiasing.py   all of it
files.py       a chosen edit as a folder
"""
