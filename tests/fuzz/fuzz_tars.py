"""Mutated shards: absurd sizes, classes, links, extended headers, cut and damaged tars."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
from pathlib import Path

from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.decode import DecodeError
from fastcnn.data.sources.open import open_data
from fuzz_harness import Kind
from fuzz_mutations import mutate_bytes

ROOT = Path("input")
WORDS = (
    *(b"1000000000", b"9" * 5000, b"-1", b"", b" ", b"\xff\xfe", b"1.5", b"a\nb", b"x" * 20_000_000, b"\x00"),
    *("\u0661".encode(), b"0x1", b"cat\x1b[31m", b"2" * 19),
)
TYPES = (
    *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"\x00", b"Z"),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE),
)
SIZES = (b"77777777777\x00", b"-0000000001\x00", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\x00")


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 90, 30)).save(stream, format="JPEG")
    return stream.getvalue()


def prepare(folder: Path) -> None:
    (folder / ROOT).mkdir()
    (folder / ROOT / "val.tar").write_bytes(shard(random.Random(0), odd=False))


def shard(rng: random.Random, *, odd: bool) -> bytes:
    """Return a shard of eight samples; some members are odd."""
    stream, image = io.BytesIO(), jpeg()
    with tarfile.open(
        fileobj=stream, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as tar:
        for i in range(8):
            for suffix, content in (("jpg", image), ("cls", b"%d" % (i % 2))):
                info = tarfile.TarInfo(f"{i:03}.{suffix}")
                if odd and rng.random() < 0.1:
                    info.name = rng.choice(
                        ("../../evil.jpg", "/etc/evil.cls", "x" * 9000, "a\nb.jpg", "", ".")
                    )
                if odd and rng.random() < 0.1:
                    keys = (
                        "size",
                        "path",
                        "GNU.sparse.size",
                        "GNU.sparse.realsize",
                        "GNU.sparse.map",
                        "mtime",
                    )
                    values = ("-5", "99999999999999", "x", "1,2,3", "y" * 3_000_000, "")
                    info.pax_headers = {rng.choice(keys): rng.choice(values)}
                if odd and rng.random() < 0.1:
                    info.type = rng.choice(TYPES)
                    info.linkname = rng.choice(("../../outside", "000.jpg", "/etc/passwd"))
                if odd and rng.random() < 0.15 and suffix == "cls":
                    content = rng.choice(WORDS)
                if odd and rng.random() < 0.1 and suffix == "jpg":
                    content = rng.choice((b"", content[:100], content * 2, rng.randbytes(300)))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def mutate(rng: random.Random) -> str:
    how = rng.random()
    data, done = shard(rng, odd=how < 0.5), "members"
    if how > 0.3:
        changed = bytearray(data)
        at = 512 * rng.randrange(len(data) // 512)
        if how < 0.75:  # the size or the type of a header, with the right sum
            changed[at + 124 : at + 136] = (
                rng.choice(SIZES) if rng.random() < 0.7 else data[at + 124 : at + 136]
            )
            changed[at + 156 : at + 157] = rng.choice((*TYPES, data[at + 156 : at + 157]))
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\x00 " % sum(changed[at : at + 512])
            data, done = bytes(changed), f"header at {at}"
        else:
            data, done = mutate_bytes(rng, data)
    (ROOT / "train.tar").write_bytes(data)
    return done


def check() -> None:
    source = open_data(DataSettings(data=str(ROOT)), task="classification", seed=0)
    files = source.train.files
    assert files is not None
    for i in range(len(source.train)):
        with contextlib.suppress(DecodeError):  # a bad sample, which the loaders replace
            files.decode(i, 3)


KINDS = (Kind("tar", prepare, mutate, check),)
