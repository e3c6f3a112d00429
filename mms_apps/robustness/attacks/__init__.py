"""The attacks of torchattacks (Kim 2020, arXiv 2010.01950), with its traps put right.

- AutoAttack and its parts run 100 steps, as the reference does, not 10; with few classes it takes
  the parts that work for so many.
- PGD returns its last iterate; here the best one of each image is kept.
- CW fixes the constant c; here several are tried, and the nearest success is kept.
- Nothing global changes: the random state, the model's mode, what its parameters require.
"""
