"""Image names: what each leads to, in one namespace."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from sampan.errors import NotFound
from sampan.spec.image import Descriptor
from sampan.storage.database import Database


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """A name and the manifest or index it leads to. Times in nanoseconds since the epoch."""

    name: str
    target: Descriptor
    labels: dict[str, str]
    created_at: int
    updated_at: int


class Images:
    """The image names of one namespace. What a name leads to is kept from being collected."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def get(self, name: str) -> ImageEntry:
        """The entry of ``name``.

        Raises:
            NotFound: There is no such name.
        """
        found = self._select("name=?", name)
        if not found:
            raise NotFound(f'image "{name}": not in namespace {self._namespace}')
        return found[0]

    def find(self, digest: str) -> list[ImageEntry]:
        """The entries that lead to ``digest``."""
        return self._select("digest=?", digest)

    def _select(self, condition: str, value: str | int) -> list[ImageEntry]:
        rows = self._database.rows(
            "SELECT name, target, labels, created_at, updated_at FROM images "
            f"WHERE namespace=? AND {condition} ORDER BY name",
            (self._namespace, value),
        )
        return [
            ImageEntry(row[0], msgspec.json.decode(row[1], type=Descriptor), json.loads(row[2]), row[3], row[4])
            for row in rows
        ]

    def put(self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None) -> ImageEntry:
        """Make ``name`` lead to ``target``; labels stay as they are unless given."""
        now = time.time_ns()
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "INSERT INTO images (namespace, name, digest, target, labels, created_at, updated_at) "
                "VALUES (?1, ?2, ?3, ?4, coalesce(?5, '{}'), ?6, ?6) ON CONFLICT (namespace, name) DO UPDATE SET "
                "digest=?3, target=?4, labels=coalesce(?5, labels), updated_at=?6",
                (
                    self._namespace,
                    name,
                    target.digest,
                    msgspec.json.encode(target).decode(),
                    None if labels is None else json.dumps(dict(labels)),
                    now,
                ),
            )
        return self.get(name)

    def delete(self, name: str) -> None:
        """Forget a name; its content goes with the next collection.

        Raises:
            NotFound: There is no such name.
        """
        with self._database.transaction() as connection:
            if not connection.execute(
                "DELETE FROM images WHERE namespace=? AND name=?", (self._namespace, name)
            ).rowcount:
                raise NotFound(f'image "{name}": not in namespace {self._namespace}')

    def list(self) -> list[ImageEntry]:
        """All entries, by name."""
        return self._select("1=?", 1)
