"""The `mms` command, one file a group of commands.

options.py           options that several commands share
common.py            what several commands do with stores and dictionaries
run.py               `mms run`: all stages
stages.py            the stages one by one: extract, fit, score, report
importing.py         import
converting.py        convert
comparing.py         compare, drift, concepts
explore.py           explore
train_encoder.py     train-encoder
train_generator.py   train-generator
steer.py             steer
robustness.py        robustness
attributes.py        attributes predict, audit, debias, correct
attribute_inputs.py  what those read
command.py           all of them together

Heavy libraries are imported inside the commands, so that `mms --help` stays fast.
"""

from mms_apps.cli.command import app, main

__all__ = ["app", "main"]
