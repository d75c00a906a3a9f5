"""``python -m trak_lightning_zarr FOLDER FILE.zip``."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from trak_lightning.errors import TrakError
from trak_lightning_zarr.pack import pack


def main() -> int:
    """Pack a store; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m trak_lightning_zarr", description="Copy a finished Zarr store to one zip file."
    )
    parser.add_argument("url", type=str, help="a path, or an address such as s3://bucket/run")
    parser.add_argument("output", type=str, help="the zip file to write")
    config = parser.parse_args()
    try:
        count = pack(config.url, Path(config.output))
    except TrakError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{count} objects in {config.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
