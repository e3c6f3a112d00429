"""Image-caption pairs behind one iterator, from any of the usual layouts.

    pairs = open_pairs("photos/")             # imagefolder: metadata.jsonl, .csv or .parquet beside
                                              # the images, splits and classes in folders
    pairs = open_pairs("photos.csv")          # or .tsv, .jsonl, .json, .parquet
    pairs = open_pairs("data/train-*.parquet")  # shards, by folder, glob or brace pattern
    pairs = open_pairs("photos-{0..9}.tar")   # webdataset, likewise
    pairs = open_pairs("https://host/photos-{0..9}.tar")  # the same behind https or s3 URLs
    pairs = open_pairs("embedded")            # the small world that ships with the package
    pairs = open_pairs("photos")              # photographs, which ship with it too

A pair that cannot be read comes out as `Skipped`, with the reason, and the reading goes on.
Images are never held in memory, of tables only the places of their records, of archives and folders
the names.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from features.errors import UserError
from features.files import globbed
from features.pairs.base import NoRecords, PairSource, UnreadableFile
from features.pairs.folders import FolderPairs, walk
from features.pairs.images import EXTENSIONS
from features.pairs.packed import unpacked_name
from features.pairs.parquet import ParquetPairs
from features.pairs.records import Wanted
from features.pairs.remote import is_url, path_of, require_no_password, shown
from features.pairs.several import SPLITS, DamagedPairs, SeveralPairs
from features.pairs.tables import DELIMITED, JSON_LINES, NAMED_ALONE, FilePairs
from features.pairs.tars import ENDINGS, TarPairs

PARQUET = ".parquet"
TABLES = (*JSON_LINES, *DELIMITED, PARQUET)
METADATA = "metadata"
DEPTH = 2
"""Folders below the named one in which tables and archives are looked for."""
ADVICE = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".7z"), "unpack it"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as .csv"),
    **dict.fromkeys((".arrow", ".feather", ".pkl", ".h5"), "write it as .parquet"),
}
"""What to do with files in other formats."""
MAX_FILES = 100_000
"""That a pattern may stand for."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)")


def open_pairs(
    spec: str | Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    captions_needed: bool = True,
) -> PairSource:
    """Open the pairs that `spec` names.

    Args:
        spec: `embedded`, `embedded:train` or `embedded:heldout`; `photos` or one of its splits
            (`features.embedded.photos`), where no folder has that name; a folder of images with
            metadata (.jsonl, .csv, .tsv or .parquet), of such folders (splits), of folders whose
            names are the labels, of .parquet or of .tar files; a .csv, .tsv, .jsonl, .json or
            .parquet file; or a glob or brace pattern of such files. .tar files may be http, https
            or s3 URLs.
        image_column: the column that names or holds the images; None to look for the usual names.
        caption_column: the column of the captions; None to look for the usual names.
        captions_needed: False where images alone are asked for: pairs without captions are not
            skipped then.

    Raises:
        UserError: nothing is there, the format is unknown, or there are no images or captions.
    """
    spec = str(spec)
    if spec.partition(":")[0] == "embedded":
        from features.embedded.world import EmbeddedPairs, split_named

        return EmbeddedPairs(split_named(spec))
    if spec.partition(":")[0] == "photos" and not Path(spec).exists():
        from features.embedded import photos

        return photos.PhotoPairs(photos.split_named(spec))
    if not spec.strip():
        raise UserError("pairs: the name is empty; give a folder, a file or a URL")
    wanted = Wanted(image_column, caption_column, captions_needed)
    if spec.startswith("~"):
        spec = os.path.expanduser(spec)
    path = Path(spec)
    if is_url(spec):
        require_no_password(spec)
        if not path_of(spec).name.endswith(ENDINGS):
            raise UserError(
                f"{shown(spec)}: of URLs only .tar files are read; name them, or download it"
            )
        return TarPairs(_braces(spec), path_of(spec).name, wanted)
    try:
        if path.is_dir():
            return _folder(path, spec, wanted)
        if path.is_file():
            return _file(path, wanted)
        if path.exists():
            raise UserError(f"{spec}: a pipe or a device; give a folder or a file")
        files = _expand(spec)
    except OSError as error:
        where = error.filename or spec
        raise UserError(f"{where}: cannot be read ({error.strerror}); check the path") from None
    return _shards(files, path.name, wanted)


def _file(path: Path, wanted: Wanted) -> PairSource:
    name = path.name.lower()
    if name.endswith(ENDINGS):
        return TarPairs([str(path)], path.name, wanted)
    if name.endswith(PARQUET):
        return ParquetPairs(path, wanted)
    if unpacked_name(name).endswith((*JSON_LINES, *DELIMITED, *NAMED_ALONE)):
        return FilePairs(path, path.name, wanted)
    raise UserError(
        f"{path}: unknown format {path.suffix!r}; use a folder of images, or a file that ends in "
        f"{', '.join((*TABLES, *NAMED_ALONE))} or .tar"
        + (f"; {ADVICE[path.suffix.lower()]}" if path.suffix.lower() in ADVICE else "")
    )


def _folder(folder: Path, spec: str, wanted: Wanted) -> PairSource:
    """The pairs in a folder, by the first of the layouts that fits."""
    name = folder.resolve().name
    names = walk(folder, DEPTH)
    # img2dataset writes what it downloaded in 00000/ beside a table of it, 00000.parquet; archives
    # stay beside what was unpacked
    files = [f for f in _files(folder, names) if not (folder / _without_ending(f)).is_dir()]
    for depth in range(1, DEPTH + 2):
        described = [f for f in files if len(f.parts) <= depth and _is_metadata(f)]
        if described:
            return _tables(folder, described, name, wanted)
    for endings in (ENDINGS, (PARQUET,)):
        found = [f for f in files if f.name.lower().endswith(endings)]
        if found:
            if endings == ENDINGS:
                _require_no_pictures_beside(folder, found, names)
            return _shards([str(folder / file) for file in found], name, wanted)
    tables = [f for f in files if len(f.parts) == 1 and f.name.lower().endswith(TABLES)]
    if len(tables) == 1:
        return _file(folder / tables[0], wanted)
    if tables:
        raise UserError(
            f"{spec}: {len(tables)} tables ({', '.join(map(str, tables[:5]))}); name one of them"
        )
    return FolderPairs(folder, wanted)


def _is_metadata(file: Path) -> bool:
    return file.stem.lower() == METADATA and file.suffix.lower() in TABLES


def _tables(folder: Path, tables: list[Path], name: str, wanted: Wanted) -> PairSource:
    """Metadata of one folder, or of several, whose names are the splits."""
    by_folder: dict[str, Path] = {}
    for table in tables:
        place = table.parent.as_posix()
        if place in by_folder:
            raise UserError(
                f"{folder / place}: {by_folder[place].name} and {table.name}; keep one of them"
            )
        by_folder[place] = table
    if list(by_folder) == ["."]:
        table = folder / by_folder["."]
        if table.suffix.lower() == PARQUET:
            return ParquetPairs(table, wanted)
        return FilePairs(table, name, wanted)
    sources = {place: _file(folder / table, wanted) for place, table in by_folder.items()}
    return SeveralPairs(name, sources, {place: Path(place).name for place in sources})


def _shards(files: list[str], name: str, wanted: Wanted) -> PairSource:
    """Archives, or tables and parquet files, as one source."""
    archives = [file for file in files if file.lower().endswith(ENDINGS)]
    if len(archives) == len(files):
        return TarPairs(files, name, wanted)
    if archives:
        raise UserError(f"{name}: archives and tables together; name one kind of files")
    if len(files) == 1:
        return _file(Path(files[0]), wanted)
    parent = Path(os.path.commonpath([Path(file).absolute().parent for file in files]))
    paths = {Path(file).absolute().relative_to(parent).as_posix(): Path(file) for file in files}
    splits = {place: split for place in paths if (split := _split_of(place)) is not None}
    return SeveralPairs(name, _sources(paths, wanted), splits)


def _sources(paths: dict[str, Path], wanted: Wanted) -> dict[str, PairSource]:
    """The pairs of each shard; those without records are left out, damaged ones are skipped.

    Raises:
        UserError: all of them are such, or one cannot be opened for another reason.
    """
    sources: dict[str, PairSource] = {}
    failures: list[UserError] = []
    for place, path in paths.items():
        try:
            sources[place] = _file(path, wanted)
        except NoRecords as error:
            failures.append(error)
        except UnreadableFile as error:
            failures.append(error)
            sources[place] = DamagedPairs(path, error.reason)
    if len(failures) == len(paths):
        raise failures[0]
    return sources


def _split_of(place: str) -> str | None:
    """The split that a shard's path names: `train/0.parquet`, `train-00000-of-00002.parquet`."""
    first = place.split("/")[0].split("-")[0].split(".")[0].lower()
    return first if first in SPLITS else None


def _files(folder: Path, names: list[str]) -> list[Path]:
    """Tables and archives among files, relative to the folder, sorted; without pipes and devices,
    which may never end."""
    files = (Path(name) for name in names if name.lower().endswith((*TABLES, *ENDINGS)))
    return sorted(f for f in files if (folder / f).is_file() or not (folder / f).exists())


def _without_ending(file: Path) -> Path:
    """A table's or an archive's path without its ending, which may have a dot (`.tar.gz`)."""
    ending = next((end for end in ENDINGS if file.name.lower().endswith(end)), file.suffix)
    return file.with_name(file.name[: -len(ending)])


def _require_no_pictures_beside(folder: Path, archives: list[Path], names: list[str]) -> None:
    """Raise a UserError where a folder of archives is one of pictures as well, and more so."""
    pictures = sum(name.lower().endswith(EXTENSIONS) for name in names)
    if pictures > len(archives):
        alike = archives[0].with_name(f"*{archives[0].suffix}")
        raise UserError(
            f"{folder}: {pictures} pictures beside archives ({', '.join(map(str, archives[:3]))}); "
            f"name the archives (as {folder / alike}), the table of the pictures, or the pictures' "
            "own folder without archives"
        )


def _expand(pattern: str) -> list[str]:
    """The files of a brace and glob pattern.

    Raises:
        UserError: there is none, or one that the braces name is missing.
    """
    files: list[str] = []
    for piece in _braces(pattern):
        found = [piece] if os.path.isfile(piece) else globbed(piece)
        if not found:
            raise UserError(f"{piece}: no such file or folder; check the path or the pattern")
        files += [file for file in found if os.path.isfile(file)]
    if not files:
        raise UserError(f"{pattern}: stands for folders only; name one of them, or files")
    return list(dict.fromkeys(files))


def _braces(pattern: str) -> list[str]:
    """All that a pattern's braces stand for: `{0..9}`, `{a,b}`.

    Raises:
        UserError: more than MAX_FILES.
    """
    from braceexpand import braceexpand

    ranges = [abs(int(last) - int(first)) + 1 for first, last in RANGE.findall(pattern)]
    if math.prod(ranges) > MAX_FILES:
        raise UserError(f"{pattern}: stands for more than {MAX_FILES:,} files; name fewer")
    try:
        return list(dict.fromkeys(braceexpand(pattern)))
    except ValueError:  # braces that do not match
        return [pattern]
