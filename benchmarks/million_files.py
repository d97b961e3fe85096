"""Start of a data set of a million files: processor time and memory, beside torchvision's ImageFolder.

    python benchmarks/million_files.py make /data/million --photos /data/photos
    python benchmarks/million_files.py measure /data/million

`make` fills 1,000 class folders with 1,281,000 hard links to the photos, on the same file system. `measure`
opens them in fresh processes, in turn: by ImageFolder, which lists them, and by fastcnn, which also knows the
size and orientation of each image: at the first start, with an empty cache, at later ones, and in one and two
ranks of a node, which import torch too. Files are in the system's cache. Processor time is that of whole
processes, with imports; "reading" is the part of opening the data, with the ranks' wait for each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastcnn

if TYPE_CHECKING:
    from fastcnn.data.sources.dataset import Source

FILES, CLASSES = 1_281_000, 1_000
VAL_SPLIT = 0.1


def make(root: Path, photos: Path, files: int, classes: int) -> None:
    """Link the photos in turn into class folders.

    Raises:
        OSError: the photos are on another file system, or the folders are there.
    """
    from fastcnn.data.sources.walk import image_files

    photo = itertools.cycle(list(image_files(photos)))
    for number in range(classes):
        folder = root / "train" / f"n{number:08}"
        folder.mkdir(parents=True)
        for i in range(files // classes):
            os.link(next(photo), f"{folder}/{folder.name}_{i}.JPEG")


# In a fresh process: imports, then the call that reads


def image_folder(root: Path, stack: ExitStack) -> Callable[[], int]:
    from torchvision.datasets import ImageFolder

    return lambda: len(ImageFolder(str(root / "train")))


def fastcnn_alone(root: Path, stack: ExitStack) -> Callable[[], int]:
    from fastcnn.config.settings import DataSettings
    from fastcnn.data.sources.open import open_data

    settings = DataSettings(data=str(root), val_split=VAL_SPLIT)
    return lambda: count(open_data(settings, task="classification", seed=0))


def fastcnn_ranks(root: Path, stack: ExitStack) -> Callable[[], int]:
    import torch

    from fastcnn.config import Config
    from fastcnn.runtime.distributed import Ranks, process_group
    from fastcnn.setup.observe import observe_data

    ranks = Ranks.from_environment()
    config = Config(arch="resnet50", data=str(root), val_split=VAL_SPLIT)
    stack.enter_context(process_group(ranks, torch.device("cpu")))
    return lambda: count(observe_data(config, ranks))


def count(source: Source) -> int:
    return len(source.train) + len(source.val)


READERS = {
    "ImageFolder": image_folder,
    "fastcnn, first start": fastcnn_alone,
    "fastcnn": fastcnn_alone,
    "fastcnn, one rank": fastcnn_ranks,
    "fastcnn, two ranks": fastcnn_ranks,
}
FIRST = "fastcnn, first start"
WORLD_SIZE = {"fastcnn, two ranks": 2}


def read(side: str, root: Path) -> None:
    """Read the data; print the number of images and the processor seconds as JSON."""
    with ExitStack() as stack:
        reader = READERS[side](root, stack)
        started = time.process_time()
        images = reader()
        print(json.dumps({"images": images, "reading_seconds": time.process_time() - started}))


# Measurement


def run(side: str, root: Path, cache: Path) -> dict[str, float]:
    """Run the processes of a side; return their seconds, summed up, and the largest memory of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world_size = WORLD_SIZE.get(side, 1)
    code = [str(Path(fastcnn.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        "PYTHONPATH": os.pathsep.join(code),
        "FASTCNN_CACHE": str(cache),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    command = [sys.executable, __file__, "read", str(root), side]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    found = {"cpu_seconds": 0.0, "reading_seconds": 0.0, "peak_bytes": 0.0, "images": 0.0}
    for process in processes:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)}: failed")
        answer = json.loads(output)
        found["cpu_seconds"] += usage.ru_utime + usage.ru_stime
        found["reading_seconds"] += answer["reading_seconds"]
        found["peak_bytes"] = max(found["peak_bytes"], usage.ru_maxrss * 1024)
        found["images"] = answer["images"]
    return found


def measure(root: Path, rounds: int) -> dict[str, Any]:
    """Measure the first start once, then the other sides in turn; return medians."""
    with tempfile.TemporaryDirectory() as cache:
        found = {FIRST: [run(FIRST, root, Path(cache))]}
        others = [side for side in READERS if side != FIRST]
        for number in range(rounds):
            for i in range(len(others)):
                side = others[(number + i) % len(others)]
                found.setdefault(side, []).append(run(side, root, Path(cache)))
    images = {turn["images"] for turns in found.values() for turn in turns}
    assert len(images) == 1, f"the sides found {images} images"
    names = ("cpu_seconds", "reading_seconds", "peak_bytes")
    # Not before: a process counts the memory of the one that started it.
    import torch

    from fastcnn.runtime.environment import environment

    return {
        "what": "million-files",
        "environment": environment(torch.device("cpu")),
        "settings": {"images": int(images.pop()), "val_split": VAL_SPLIT, "rounds": rounds},
        "sides": {
            side: {name: statistics.median(turn[name] for turn in found[side]) for name in names}
            for side in READERS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="fill class folders with links to photos")
    maker.add_argument("root", type=Path)
    maker.add_argument("--photos", type=Path, required=True)
    maker.add_argument("--files", type=int, default=FILES)
    maker.add_argument("--classes", type=int, default=CLASSES)
    measurer = commands.add_parser("measure", help="open them in fresh processes; write a JSON file")
    measurer.add_argument("root", type=Path)
    measurer.add_argument("--rounds", type=int, default=3)
    measurer.add_argument("--output", help="JSON file (results/MACHINE/million-files.json)")
    reader = commands.add_parser("read", help="one of these processes")
    reader.add_argument("root", type=Path)
    reader.add_argument("side", choices=READERS)
    args = parser.parse_args()
    if args.command == "make":
        make(args.root, args.photos, args.files, args.classes)
    elif args.command == "read":
        read(args.side, args.root)
    else:
        content = measure(args.root, args.rounds)
        import torch

        from comparison import results_file
        from fastcnn.bench.timing import write_json

        for side, values in content["sides"].items():
            seconds = f"{values['cpu_seconds']:6.1f} s, reading {values['reading_seconds']:5.1f} s"
            print(f"{side:22}{seconds}, {values['peak_bytes'] / 2**20:5.0f} MiB")
        path = results_file("million-files", args.output, torch.device("cpu"))
        write_json(path, content)
        print(path)


if __name__ == "__main__":
    main()
