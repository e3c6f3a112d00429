"""What is installed by need: the extras of pyproject.toml, and naming one that is missing."""

from __future__ import annotations

from importlib.util import find_spec

from features.errors import UserError

PACKAGES = {
    "steering": "diffusers",
    "attributes": "fairlearn",
    "robustness": "torchattacks",
    "demos": "gradio",
    "s3": "boto3",
}
"""The package by which each extra is known to be there."""


def require(extra: str) -> None:
    """Raise a UserError, with the command to run, where an extra of the package is missing."""
    package = PACKAGES[extra]
    try:
        found = find_spec(package) is not None
    except ValueError:  # a module that stands in for one that is not there
        found = False
    if not found:
        raise UserError(f"{package} is not installed; run: pip install 'mms-apps[{extra}]'")
