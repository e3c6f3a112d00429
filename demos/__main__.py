"""All demos as tabs of one page, over FeatureSpaces of one's own or those that ship.

python -m demos [SPACE ...] [--pairs PAIRS] [--generator GENERATOR] [--encoder ENCODER]
"""

from __future__ import annotations

from demos.common import add_encoder, options, run_in_words
from demos.front_door import serve


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "spaces",
        nargs="*",
        metavar="SPACE",
        help="folder, hub id or name of a FeatureSpace; of several, all of one encoder "
        "[default: those that ship]",
    )
    parser.add_argument("--pairs", help="labelled pairs for the tabs of attributes and robustness")
    parser.add_argument("--generator", help="Stable unCLIP folder or hub id, for steering")
    add_encoder(parser)
    parser.add_argument("--image-column", help="column that names or holds the images")
    parser.add_argument("--caption-column", help="column of the captions, which are not needed")
    serve(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_in_words(main)
