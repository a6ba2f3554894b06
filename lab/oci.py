"""A root file system, as a tar of one layer, made into an OCI archive that containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Config:
    """What the image runs."""

    entrypoint: Sequence[str]
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    stop_signal: str = "SIGTERM"
    user: str = ""


def add_file(layer: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    """Add a regular file of root's to a layer."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    layer.addfile(entry, io.BytesIO(data))


def add_folder(layer: tarfile.TarFile, name: str, mode: int = 0o755) -> None:
    """Add a directory of root's to a layer."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    layer.addfile(entry)


def copy_layer(source: Path, layer: tarfile.TarFile, keep: Callable[[str], bool]) -> None:
    """Copy the members of a tar for which ``keep(name)`` holds."""
    with tarfile.open(source) as tar:
        for entry in tar:
            if keep(entry.name.removeprefix("./")):
                layer.addfile(entry, tar.extractfile(entry) if entry.isreg() else None)


def write_archive(target: Path, image: str, layer: Path, config: Config, arch: str) -> None:
    """Write the OCI archive of the image named ``image`` (``name:tag``) with this one layer."""
    layer_digest = hashlib.sha256()
    with layer.open("rb") as file:
        while block := file.read(1 << 20):
            layer_digest.update(block)
    config_data = _json(
        {
            "architecture": arch,
            "os": "linux",
            "config": {
                "Entrypoint": list(config.entrypoint),
                "Env": list(config.env),
                "StopSignal": config.stop_signal,
                "User": config.user,
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest.hexdigest()}"]},
        }
    )
    layer_part = {
        "mediaType": _LAYER,
        "digest": f"sha256:{layer_digest.hexdigest()}",
        "size": layer.stat().st_size,
    }
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config_data),
            "layers": [layer_part],
        }
    )
    names = {"io.containerd.image.name": image}
    index = _json(
        {
            "schemaVersion": 2,
            "manifests": [{**_descriptor(_MANIFEST, manifest), "annotations": names}],
        }
    )
    with tarfile.open(target, "w") as archive:
        add_file(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        add_file(archive, "index.json", index)
        for blob in (config_data, manifest):
            add_file(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        archive.add(layer, f"blobs/sha256/{layer_digest.hexdigest()}")


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(data)}
