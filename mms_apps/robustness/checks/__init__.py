"""Checks of an evaluation: a result that fails one is not to be relied on.

After Carlini et al. 2019 (arXiv 1902.06705), Athalye et al. 2018 (arXiv 1802.00420), Pintor et al.
2022 (arXiv 2106.09947) and the flags of AutoAttack. Accuracies and shares are in [0, 1].
"""
