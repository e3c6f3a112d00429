"""The layouts in which others keep the embeddings of pairs.

laion/img_emb/img_emb_0.npy          clip-retrieval: numbered files in three folders
laion/text_emb/text_emb_0.npy
laion/metadata/metadata_0.parquet
datacomp/0a1b.npz, 0a1b.parquet      DataComp's metadata: both sides in one file
pairs.parquet, pairs.safetensors     any file that holds both sides
images.npy with texts.npy            files apart, with or without a table
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import UserError, first_line
from features.files import globbed
from features.pairs.base import sampled
from features.pairs.parquet import is_read
from features.store.embedding_files import ENDINGS, EmbeddingRows, open_rows

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
"""clip-retrieval's folders."""
TABLE = ".parquet"
DIGITS = re.compile(r"(\d+)")
PIECES = re.compile(r"\d+|[^\W\d_]+")
"""The numbers and words of a name."""


@dataclass(frozen=True)
class EmbeddingPart:
    """Files that go together, row by row."""

    image: EmbeddingRows
    text: EmbeddingRows
    table: Path | None
    """Parquet with the pairs' captions and attributes."""

    @property
    def files(self) -> list[Path]:
        """Each once."""
        tables = [] if self.table is None else [self.table]
        return list(dict.fromkeys([self.image.path, self.text.path, *tables]))


@dataclass(frozen=True)
class EmbeddingFiles:
    """The embeddings of pairs, in several parts.

    name: what the user named, without a folder's absolute path.
    """

    name: str
    parts: tuple[EmbeddingPart, ...]

    @property
    def rows(self) -> int:
        """Pairs in all parts."""
        return sum(part.image.rows for part in self.parts)

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.parts[0].image.dim

    def fingerprint(self) -> str:
        """sha256 over the files' names and sizes, and some of their bytes."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f"{part.image.key} {part.text.key} {part.image.rows}".encode())
            for path in part.files:
                with path.open("rb") as file:
                    size = path.stat().st_size
                    digest.update(path.name.encode() + sampled(file, 0, size))
        return digest.hexdigest()


def open_embeddings(
    source: str | Path | None = None,
    *,
    images: str | Path | None = None,
    texts: str | Path | None = None,
    metadata: str | Path | None = None,
    image_key: str | None = None,
    text_key: str | None = None,
) -> EmbeddingFiles:
    """Find the embeddings of pairs and what goes together.

    Args:
        source: a folder of clip-retrieval's or DataComp's, or files that hold images and texts
            (a file, a folder or a glob).
        images: in place of `source`: files of the images' embeddings (a file, a folder or a glob).
        texts: of the texts' embeddings, as many files; where they are several, with the numbers or
            names of the images' files.
        metadata: parquet files with captions and attributes, likewise; None takes the columns of
            embeddings' own parquet files, or those that the layout has.
        image_key: the array, tensor or column that holds the images' embeddings.
        text_key: the texts'.

    Raises:
        UserError: nothing is there, files don't go together, or rows or dimensions differ.
    """
    if (source is None) == (images is None and texts is None):
        raise UserError("give a folder or file of embeddings, or --images and --texts")
    name = Path(source or images or "").name
    if source is not None:
        root = Path(source)
        if (root / IMAGES).is_dir() or (root / TEXTS).is_dir():
            found = _numbered(root)
        else:
            inner = root / METADATA  # where DataComp's download puts them
            together = _listed(inner if inner.is_dir() else root, ENDINGS)
            if any(path.suffix != TABLE for path in together):  # then tables lie beside
                together = [path for path in together if path.suffix != TABLE]
            found = [(path, path, _beside(path)) for path in together]
    elif images is None or texts is None:
        raise UserError("--images and --texts go together; name both")
    else:
        found = [(*pair, None) for pair in _matched(images, texts)]
    if metadata is not None:
        found = [
            (image, text, table)
            for (table, (image, text, _)) in zip(_as_many(metadata, found), found, strict=True)
        ]
    parts = [_part(*files, image_key, text_key) for files in found]
    for part in parts[1:]:
        _same(parts[0].image, part.image, "dim", "dimensions")
    return EmbeddingFiles(name, tuple(parts))


def table_columns(path: Path) -> list[str]:
    """The columns of a table that may hold texts or attributes: all but vectors and bytes."""
    return [field.name for field in pq.read_schema(path) if is_read(field)]


def _part(
    image: Path, text: Path, table: Path | None, image_key: str | None, text_key: str | None
) -> EmbeddingPart:
    if table is None and image.suffix == TABLE:
        table = image
    part = EmbeddingPart(open_rows(image, image_key, 0), open_rows(text, text_key, 1), table)
    if (part.image.path, part.image.key) == (part.text.path, part.text.key):
        raise UserError(
            f"{image}: {part.image.key or 'its one array'} would be the embeddings of both images "
            "and texts; give --images and --texts, or --image-key and --text-key"
        )
    _same(part.image, part.text, "rows", "rows")
    _same(part.image, part.text, "dim", "dimensions")
    if table is not None:
        try:
            rows = pq.read_metadata(table).num_rows
        except (pa.ArrowException, OSError) as error:
            advice = "copy it again" if table.suffix == TABLE else "captions are read from .parquet"
            raise UserError(f"{table}: damaged ({first_line(error)}); {advice}") from None
        if rows != part.image.rows:
            raise UserError(
                f"{image} has {part.image.rows} rows, {table} has {rows}; give files of the same "
                "pairs in the same order"
            )
    return part


def _same(one: EmbeddingRows, other: EmbeddingRows, what: str, word: str) -> None:
    if getattr(one, what) != getattr(other, what):
        raise UserError(
            f"{one.path} {one.key} has {getattr(one, what)} {word}, {other.path} {other.key} has "
            f"{getattr(other, what)}; give files of the same pairs and the same encoder".replace(
                "  ", " "
            )
        )


def _numbered(root: Path) -> list[tuple[Path, Path, Path | None]]:
    """clip-retrieval's files, by their numbers."""
    folders = {name: root / name for name in (IMAGES, TEXTS, METADATA)}
    ends = {IMAGES: ".npy", TEXTS: ".npy", METADATA: TABLE}
    numbers = {
        name: {
            str(int(DIGITS.split(path.stem)[-2])): path
            for path in map(Path, globbed(f"{folder}/*{ends[name]}"))
            if DIGITS.search(path.stem)
        }
        for name, folder in folders.items()
    }
    wanted = [name for name in folders if name != METADATA or numbers[METADATA]]
    every = sorted(set().union(*numbers.values()), key=int)
    if not every:
        raise UserError(f"{root}: no numbered .npy files in {IMAGES} and {TEXTS}")
    for number in every:
        for name in wanted:
            if number not in numbers[name]:
                raise UserError(
                    f"{folders[name]}: no file numbered {number}, as the other folders have; copy "
                    "it there, or remove the others"
                )
    return [(numbers[IMAGES][n], numbers[TEXTS][n], numbers[METADATA].get(n)) for n in every]


def _beside(path: Path) -> Path | None:
    table = path.with_suffix(TABLE)
    return table if table.is_file() else None


def _matched(images: str | Path, texts: str | Path) -> list[tuple[Path, Path]]:
    one, two = (_listed(Path(each), ENDINGS) for each in (images, texts))
    if len(one) != len(two):
        raise UserError(f"{images}: {len(one)} files, {texts}: {len(two)}; give as many of both")
    return list(zip(one, _beside_each(one, two, texts), strict=True))


def _as_many(metadata: str | Path, found: Sequence[tuple[Path, Path, Path | None]]) -> list[Path]:
    tables = _listed(Path(metadata), (TABLE,))
    if len(tables) != len(found):
        raise UserError(
            f"{metadata}: {len(tables)} files for {len(found)} of embeddings; give as many"
        )
    return _beside_each([image for image, _, _ in found], tables, metadata)


def _beside_each(paths: Sequence[Path], others: Sequence[Path], where: str | Path) -> list[Path]:
    """Of as many other files, the one that goes with each, by their numbers or names.

    Args:
        where: the other files, for the message.

    Raises:
        UserError: one has no such file.
    """
    beside = dict(zip(_told_apart_by(others), others, strict=True))
    found = [beside.pop(name, None) for name in _told_apart_by(paths)]
    for path, other in zip(paths, found, strict=True):
        if other is None:
            raise UserError(
                f"{where}: no file of the number or name of {path}; copy one there, remove this "
                "one, or name the files alike"
            )
    return [other for other in found if other is not None]


def _told_apart_by(paths: Sequence[Path]) -> list[tuple[str, ...]]:
    """The numbers and words of each path, without those with which all begin and end."""
    pieces = [
        [piece.lstrip("0") or "0" for piece in PIECES.findall(str(path.with_suffix("")))]
        for path in paths
    ]
    begin = _shared(pieces)
    rest = [each[begin:][::-1] for each in pieces]
    end = _shared(rest)
    return [tuple(each[end:]) for each in rest]


def _shared(pieces: list[list[str]]) -> int:
    """With how many equal pieces all begin."""
    least, most = min(pieces), max(pieces)
    return next((n for n, piece in enumerate(least) if piece != most[n]), len(least))


def _listed(path: Path, endings: Sequence[str]) -> list[Path]:
    """The files that a file, a folder or a glob stands for, in the order of the numbers in their
    names.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    pattern = path / "*" if path.is_dir() else path
    found = [Path(name) for name in globbed(str(pattern)) if name.endswith(tuple(endings))]
    if not found:
        raise UserError(f"{path}: no {', '.join(endings)} here; name a file, a folder or a glob")
    return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[str]:
    return [piece.zfill(20) if piece.isdigit() else piece for piece in DIGITS.split(str(path))]
