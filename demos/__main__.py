"""All demos as tabs of one page, over the FeatureSpaces that ship with the package.

python -m demos
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from demos import attributes, explorer, robustness, steering
from demos.common import gr, launch, options, page
from features.space.space import FeatureSpace
from mms_apps.robustness.session import Session
from mms_apps.steering.generator import SteeredGenerator

CSS = explorer.CSS + attributes.CSS + steering.CSS + robustness.CSS


def build(device: str, work: Path) -> gr.Blocks:
    """The page. Each FeatureSpace is loaded once; models are loaded when a tab first needs them.

    Args:
        work: folder for embeddings.
    """
    contrastive = FeatureSpace.load("embedded", device=device)
    with_ssl = FeatureSpace.load("embedded-ssl", device=device)
    photos = FeatureSpace.load("photos", device=device)
    of_garments = FeatureSpace.load("garments", device=device)
    shipped = {
        "photos": photos,
        "garments": of_garments,
        "embedded": contrastive,
        "embedded-ssl": with_ssl,
    }
    emoji = attributes.EMOJI.workbench(contrastive, work / "emoji")
    garments = attributes.GARMENTS.workbench(of_garments, work / "garments")
    drawer = cache(lambda: SteeredGenerator.load("embedded", with_ssl, device))
    with page("mms-apps") as demo, gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Explorer"):
            explorer.fill(shipped)
        with gr.Tab("Garments") as tab:
            attributes.fill(garments, tab.select, attributes.GARMENTS)
        with gr.Tab("Attributes") as tab:
            attributes.fill(emoji, tab.select)
        with gr.Tab("Steering"):
            steering.fill(with_ssl, drawer)
        with gr.Tab("Robustness"):
            robustness.fill(Session.load(contrastive))
    return demo


def main() -> None:
    arguments = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as work:
        launch(build(arguments.device, Path(work)), port=arguments.port, css=CSS)


if __name__ == "__main__":
    main()
