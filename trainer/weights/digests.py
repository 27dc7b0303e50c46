"""Check that downloaded weights are the files that Ultralytics published, and that no weights change after their first use.

A weights file is a pickle, so a replaced file could execute code in a training and manipulate its model. Each digest in
the table was published in at least two independent places. The digest of every official file is recorded at its first
use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from trainer.core.errors import HostUnfit
from trainer.core.stop import StopSignal
from trainer.disk import durable
from trainer.disk.checksum import sha256_of

log = structlog.get_logger()

# file name → SHA-256 of the file in the release; more digests if an earlier release has another official file
KNOWN: Mapping[str, tuple[str, ...]] = {
    "yolov8n.pt": (
        "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36",
        "31e20dde3def09e2cf938c7be6fe23d9150bbbe503982af13345706515f2ef95",
    ),
    "yolov8s.pt": (
        "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a",
        "268e5bb54c640c96c3510224833bc2eeacab4135c6deb41502156e39986b562d",
    ),
    "yolov8m.pt": (
        "5d4a90cdc7a21786cc59cd19778e9eafff836df9e2da32524737c7ee6efe4fe5",
        "6c25b0b63b1a433843f06d821a9ac1deb8d5805f74f0f38772c7308c5adc55a5",
    ),
    "yolov8l.pt": ("64c9115303f6a25575f82200d1b22ec409fa6bd7d08d0313884fc20d919478cd",),
    "yolov8x.pt": ("3df4ada6b4dad6d657868f2fdf7faecfb34dcfccf3a25c4b82079064718524c8",),
    "yolo11n.pt": ("0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1",),
    "yolo11s.pt": ("85a76fe86dd8afe384648546b56a7a78580c7cb7b404fc595f97969322d502d5",),
    "yolo11m.pt": ("d5ffc1a674953a08e11a8d21e022781b1b23a19b730afc309290bd9fb5305b95",),
    "yolo11l.pt": ("9ebd0e09d59811db4b1d61e2bc6730649608b1ac47f8dd01e2da6bca7c20023f",),
    "yolo11x.pt": ("7bc158aa95c0ebfdd87f70f01653c1131b93e92522dbe15c228bcd742e773a24",),
    "yolo11n-seg.pt": ("55ed65c56c91713d23e8402371c6c49a6fd84f257f7dce452e8d70e41dcbe152",),
    "yolo11s-seg.pt": ("1caa81c0195412efa411b632bcfb8c184939dddb6ae41f6a80c41b211ff257c3",),
    "yolo11m-seg.pt": ("eb9a06f63e2206c35d68d839b08c362429ebecf933ad54c1ad68b2fd001c17cf",),
    "yolo11l-seg.pt": ("cabe90049795dfc9a370b7934d6dec7f6b9e44a20e573b0ff81b7e205512c872",),
    "yolo11x-seg.pt": ("4e53a5f5fd3ee2ae3361c62169c6bb3ed4ae251dd0e57606e230955aa52d919c",),
    "yolo11n-cls.pt": ("c62d41bf9625777760018bf914d2e6cd472420ccd01706d97a61cb6c82502bd7",),
    "yolo11s-cls.pt": ("e2b605d1c8c212b434a75a32759a6f7adf1d2b29c35f76bdccd4c794cb653cf2",),
    "yolo11n-pose.pt": ("869e83fcdffdc7371fa4e34cd8e51c838cc729571d1635e5141e3075e9319dc0",),
    "yolo11m-pose.pt": ("29b17eaf3a3117cbea906090dbedf9159f7c6a49db58ec8b99ed2dfde1cf6eb2",),
    "yolo11n-obb.pt": ("b62898ebf38940ca4df323863e45ee9d84a1a46d5d11ebdde529fb33aa9f3a32",),
    "yolo11s-obb.pt": ("43fa63102922e0701501241b307420d24fc55e080816888b18bf8c6f96b1a45a",),
    "yolo11m-obb.pt": ("41832a4349c08190335bbc11a8e64726750702eb49cf09abb262bc394a13498c",),
    "yolo11l-obb.pt": ("92dcf9face59a821cd4ee93828f4c19b51f6dee9b842b23c1dacab7aa89039fc",),
    "yolo11x-obb.pt": ("1461342db1ce0f35c755278303febd1174604ccc375110076fa0ac155231b6a0",),
    "yolo26n.pt": ("9b09cc8bf347f0fc8a5f7657480587f25db09b34bf33b0652110fb03a8ad4fef",),
    "yolo26s.pt": ("646f8bc3fe0a656803d95c294f7852321748cb29d13466a1af8862e2db384a1b",),
    "yolo26m.pt": ("401cea9ab23ad19246ff7744859816bc599f350e93c9dd30367b6f0a0745d0b7",),
    "yolo26l.pt": ("9fe3c544f2b19bebad7ea41e76d7ad3d88b7c2f10d11d24430c5311f6b32db26",),
    "yolo26x.pt": ("9fdd44a31c504547ffb81d2c6d9e6dac3493c8eaa8b0398d3f43bae6c7003e92",),
    "yolo26n-seg.pt": ("361fbfabab285c3237700b6bb91d7ecfa602cd945fffda8dbe1242829b71e73f",),
    "yolo26s-seg.pt": ("3da1d83e31caec96f9300eb4064f4f62882c133c7c264d63dfe61a7c197837a4",),
    "yolo26m-seg.pt": ("16b636f04e8fb6a325b3370f22dc5e5535ff473e384f4d041fd28d788f6ee9f5",),
    "yolo26l-seg.pt": ("636024306410afa1732692322fba57d22ea2b1c2f07613fcee131a93d7dd380c",),
    "yolo26x-seg.pt": ("92b3de0065766a17180d6219858717dc9d03cdce8a3ca9576c97fd75aabb64f3",),
    "yolo26n-cls.pt": ("0dd6f8dbc448870ac98a3cbb7156f923f7ce21fed3755d4019169ffffd279e81",),
    "yolo26s-cls.pt": ("816790029d5df3fef358f03c8144b96339d8824ee25577aeda8be0963e5c5f09",),
    "yolo26m-cls.pt": ("9f6546f33a70d910e2cd6dcca5265c4617b5670b19a1f287c39e99258bade01a",),
    "yolo26l-cls.pt": ("7a3aebb7de6f5d79f0153da627a5f68bd3d7df30e648c0fdb7f9217986ee129e",),
    "yolo26x-cls.pt": ("ee88a0c71e9596cdfdbb71892725929cb4489b874d24fb581d20bffe79724386",),
    "yolo26n-pose.pt": ("eb3bb8268828aeaf515cec23a4bfafd793944a86fe9af94ba7823609c14522a9",),
    "yolo26s-pose.pt": ("a083adb42303728ae14c4bd6bd56d80da46f82fb2564dbd6f31dcc92ea321646",),
    "yolo26m-pose.pt": ("2fbf16367022256a226035695c5c389384c6706e8bb8ab8fcd0e7976f05443c4",),
    "yolo26l-pose.pt": ("ad33da8a29ea5772318c4c980844e47b56792d2b63815ad4e8e09c078c7d1abf",),
    "yolo26x-pose.pt": ("08ed9e01d22a6f248b04f2f9992016aca9a32250b9ab57057d886a09d026700d",),
    "yolo26n-obb.pt": ("6f51c78197aacda4a33be77294065a9001675fb893f56227a179731b53dbd2b0",),
    "yolo26s-obb.pt": ("38dbd72ef6804f9bbbea7ad20f486e6ca6e093c8cd9bc857207a846565bd6e0b",),
    "yolo26m-obb.pt": ("23e0630f66857cf4b87535f6e705b065f1e8a33603640b8e61ace85b75312903",),
    "yolo26l-obb.pt": ("8674b0c24bf68aab5eb45009e0ac3808ce432237edf8cb5c50ae2191cb263a2b",),
}


@dataclass(frozen=True)
class Digests:
    """Digests of official weights: `known`, and those recorded in `folder`, one text file per name."""

    folder: Path
    known: Mapping[str, tuple[str, ...]]

    def check(self, path: Path, name: str, stop: StopSignal, *, is_download: bool = False) -> None:
        """Check the file `path` with the official name `name`, and record its digest at its first use.

        Raises HostUnfit if the file has changed since its first use, or if a download is not the published file. The
        operator may put another file under an official name: this is logged. Only one thread may check a name at any
        time. Also raises Stopped, OSError.
        """
        digest = sha256_of(path, stop.raise_if_set)
        record = self.folder / f"{name}.sha256"
        recorded, published = _recorded(record), self.known.get(name, ())
        if digest in recorded:
            return
        if recorded:
            raise HostUnfit(
                f"base_model: {name} has the SHA-256 {digest}, but had {recorded[0]} at its first use. The file is not "
                f"used; restore it, or remove {record} if you replaced the file"
            )
        if published and digest not in published:
            if is_download:
                raise HostUnfit(
                    f"base_model: the download of {name} has the SHA-256 {digest}, but the published file has "
                    f"{published[0]}. The download is not used; copy the published file to MODELS_DIR"
                )
            log.warning("weights with an official name are not the published file", path=str(path), sha256=digest)
        self.folder.mkdir(parents=True, exist_ok=True)
        durable.write_text(record, f"{digest}  {name}\n")


def _recorded(record: Path) -> tuple[str, ...]:
    """Return the digests in a record. The format is that of sha256sum."""
    try:
        return tuple(re.findall(r"^[0-9a-f]{64}\b", record.read_text(encoding="utf-8"), re.MULTILINE))
    except FileNotFoundError:
        return ()
