"""A small dataset in an object store that counts downloads, and the places where a test can put datasets."""

import zipfile

from tests.web_server import body
from trainer.storage.local import LocalObjectStore

SUPABASE = "https://abc.supabase.co"
YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [a]\n"


DATASET = {
    "data.yaml": YAML.encode(),
    "images/train/1.jpg": b"one",
    "images/train/2.jpg": b"two!",
    "images/val/3.png": b"three",
    "labels/train/1.txt": b"0 .5 .5 .1 .1\n",
    "labels/train/2.txt": b"",
    "labels/val/3.txt": b"0 .5 .5 .1 .1\n",
}


class WatchedStore(LocalObjectStore):
    """A local store that counts downloads and calls the hook `during` of a test in each download."""

    def __init__(self, root):
        super().__init__(root)
        self.root = root
        self.downloads = []
        self.listings = 0
        self.during = lambda ref: None

    def put(self, files, folder="datasets/p/s"):
        for name, content in files.items():
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def list(self, folder):
        self.listings += 1
        return super().list(folder)

    def download(self, ref, path, stop, **options):
        self.downloads.append(ref.key)
        self.during(ref)
        return super().download(ref, path, stop, **options)

    @property
    def images(self):
        return sorted(key for key in self.downloads if not key.endswith(".yaml"))


def content(fetched):
    return {
        path.relative_to(fetched.root).as_posix(): path.read_bytes()
        for path in fetched.root.rglob("*")
        if path.is_file()
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.read_bytes()


class DatasetPlaces:
    """The folders, the store and the web server with the datasets of a test."""

    def __init__(self, tmp_path, server):
        self.root = tmp_path / "root"
        self.bucket = tmp_path / "store/datasets"
        self.server = server
        for folder in (self.root, self.bucket):
            folder.mkdir(parents=True)

    def page(self, path, data):
        """Serve the data at a path. Return the URL."""
        self.server.pages[path] = body(data)
        return self.server.url(path)
