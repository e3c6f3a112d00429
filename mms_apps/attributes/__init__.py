"""Attributes: predict them from images or texts, explain, audit and de-bias with features.

estimators.py  zero-shot, linear and sparse probes, as scikit-learn classifiers
labels.py      the labelled samples of an activation store
model.py       an estimator with its FeatureSpace: predictions of embeddings, saved without pickle
predict.py     predictions of a whole store, streamed
explain.py     which features made a prediction
edits.py       taking features, or a subspace, out of embeddings
measures.py    accuracy, gaps, rates and calibration by group, with intervals
leakage.py     what embeddings give away of a factor
permutation.py the gaps and differences that chance alone gives
audit.py       measures by group, leakage, modality classes, and where a model leans
debias/        choosing what to take out on a validation split, and comparing with baselines
correction/    wrong predictions by what made them wrong, edits of that, checked elsewhere and saved
report.py      the HTML reports
"""
