"""Correcting a model: wrong predictions by the features that made them wrong, and edits of these.

mistakes.py    wrong predictions in groups, by the feature that made them wrong
proposing.py   an edit for a group: features to weaken or remove, or the model fitted again without
checking.py    what an edit mends and breaks on other pairs, by group, and what to do about it
correcting.py  all of it, from labelled pairs
files.py       an accepted edit as a folder
standing.py    whether an accepted edit still does on new pairs what it did
report.py      the HTML report
"""
