"""Image-caption pairs behind one iterator, from any of the usual layouts.

    pairs = open_pairs("photos/")            # imagefolder: metadata.jsonl beside the images
    pairs = open_pairs("photos.csv")         # or .tsv, .parquet
    pairs = open_pairs("photos-{0..9}.tar")  # webdataset: a folder, a glob or a brace pattern
    pairs = open_pairs("https://host/photos-{0..9}.tar")  # the same behind https or s3 URLs
    pairs = open_pairs("embedded")           # the small world that ships with the package

A pair that cannot be read comes out as `Skipped`, with the reason, and the reading goes on.
Nothing is held in memory but an index of one number every 512 records.
"""

from __future__ import annotations

from pathlib import Path

from features.errors import UserError
from features.pairs.base import PairSource
from features.pairs.parquet import ParquetPairs
from features.pairs.remote import is_url, path_of
from features.pairs.tables import FilePairs
from features.pairs.tars import TarPairs, _braces, _expand


def open_pairs(spec: str) -> PairSource:
    """Open the pairs that `spec` names.

    Args:
        spec: `embedded`, `embedded:train` or `embedded:heldout`; a folder with metadata.jsonl; a
            .csv, .tsv or .parquet file; or a folder, a glob or a brace pattern of .tar files,
            which may be http, https or s3 URLs.

    Raises:
        UserError: nothing is there, the format is unknown, or there are no images or captions.
    """
    if spec.partition(":")[0] == "embedded":
        from features.embedded.world import EmbeddedPairs, split_named

        return EmbeddedPairs(split_named(spec))
    path = Path(spec)
    if is_url(spec):
        if path_of(spec).suffix != ".tar":
            raise UserError(f"{spec}: of URLs only .tar files are read; name them, or download it")
        return TarPairs(list(dict.fromkeys(_braces(spec))), name=path_of(spec).name)
    if path.is_dir():
        if (path / "metadata.jsonl").is_file():
            return FilePairs(path / "metadata.jsonl", name=path.resolve().name)
        if any(path.glob("*.tar")):
            return TarPairs(sorted(map(str, path.glob("*.tar"))), name=path.resolve().name)
        raise UserError(
            f"{spec}: no metadata.jsonl and no .tar file in this folder; put one there, or name "
            "a .csv, .tsv or .parquet file"
        )
    if spec.endswith(".tar"):
        return TarPairs(_expand(spec), name=path.name)
    if not path.is_file():
        raise UserError(f"{spec}: no such file or folder; name the pairs' folder or file")
    if path.suffix == ".parquet":
        return ParquetPairs(path)
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        return FilePairs(path, name=path.name)
    raise UserError(
        f"{spec}: unknown format {path.suffix!r}; use a folder with metadata.jsonl, .csv, .tsv, "
        ".parquet or .tar"
    )
